"""Readers of captions files: each returns a `data.entries.Reading`, and touches no image."""
