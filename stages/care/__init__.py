"""Care that needs a teacher: audit what is stored, compute again what is wrong."""
