"""One worker of teaching: ask a loaded teacher, check what it says, encode it, store it."""
