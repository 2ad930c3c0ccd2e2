"""Models to candidates."""
