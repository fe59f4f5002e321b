"""Care for a cache: verify, prune, compact, and putting one damaged segment right."""
