"""Derive: what needs the whole cache, computed over it and written back with its own identity."""
