"""The public data sets that benchmarks read: where they are, which of their rows are used, and fetching them."""
