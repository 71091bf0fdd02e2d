"""Kinds of networking.istio.io, one module per kind."""
