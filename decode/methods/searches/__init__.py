"""Which result is the answer: one file a search, and what searches share."""
