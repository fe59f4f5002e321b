"""What teaching would compute, store and cost, before anything runs."""
