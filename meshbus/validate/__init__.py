"""Validation of one object: violations with path, code and message."""

from meshbus.validate.document import validate_object
from meshbus.validate.report import Report, Violation

__all__ = ["Report", "Violation", "validate_object"]
