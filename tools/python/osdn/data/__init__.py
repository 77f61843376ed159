"""Synthetic English with in-context recall, mixed with freely licensed prose."""
