"""Schemas that are made of the structs of the kinds: OpenAPI and JSON Schema."""

from meshbus.schema.objects import json_schema_of
from meshbus.schema.openapi import openapi_of, schema_name

__all__ = ["json_schema_of", "openapi_of", "schema_name"]
