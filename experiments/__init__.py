"""Scripts people run."""
