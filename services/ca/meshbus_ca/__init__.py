"""The ca service."""
