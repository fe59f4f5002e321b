"""Data sets: rows with keys and content hashes, in memory, in files, from other libraries.

docs/data-sets.md compares them.
"""
