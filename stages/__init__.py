"""What each step computes: teach, train, evaluate."""
