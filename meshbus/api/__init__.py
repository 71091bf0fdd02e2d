"""The kinds people write: one module per API group, and the registry of them."""
