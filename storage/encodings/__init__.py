"""Encodings: what one row of a signal becomes on disk, and exactly how it is read back."""
