"""Checkpoint folders: found, checked, read and written."""
