"""Meshbus: a service-mesh control plane that speaks the Istio API."""
