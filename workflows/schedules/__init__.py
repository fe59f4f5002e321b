"""Schedules and the ledger of runs: when a workflow runs again, and what every run did."""
