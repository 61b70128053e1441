"""Models made ready for use: faster, as programs."""
