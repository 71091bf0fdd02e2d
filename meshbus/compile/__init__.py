"""Rows and one proxy in, Envoy resources out (pure)."""
