"""What is not proved."""


class ProofError(Exception):
    """It proves nothing; the message holds no part of it."""
