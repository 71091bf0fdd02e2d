"""The meshbus command."""
