"""The cache as a data source of somebody else's trainer: order, shares of ranks, batches ahead."""
