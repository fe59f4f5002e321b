"""Export: a student as inference needs it, each written form loaded again and checked on real rows."""
