"""Data: where instructions come from, and how they become training rows."""
