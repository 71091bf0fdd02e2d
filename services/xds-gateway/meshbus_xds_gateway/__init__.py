"""The xds-gateway service."""
