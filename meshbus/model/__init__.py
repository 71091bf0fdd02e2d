"""Rows that travel between services, their keys, envelope, and the World built of them."""
