"""Named plans, the demo, the command line and the report."""
