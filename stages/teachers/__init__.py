"""Teachers: one protocol, and the adapters that make a teacher of what people have."""
