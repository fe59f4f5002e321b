"""Pure loss functions, grouped by what they act on: n rows in, (n,) losses out."""
