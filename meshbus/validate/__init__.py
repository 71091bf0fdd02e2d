"""One object in, all its violations out (pure)."""
