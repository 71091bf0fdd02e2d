"""Objects together in, findings out (pure)."""
