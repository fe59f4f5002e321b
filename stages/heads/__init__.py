"""Student-only parts: they exist while a student trains and are dropped at export."""
