"""Which distribution each token comes from, and who writes it: one file a policy, and what policies share."""
