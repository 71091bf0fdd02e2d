"""OpenAPI and JSON Schema generated from the API structs (pure)."""
