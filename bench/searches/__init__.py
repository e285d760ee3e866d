"""Searches: what they reach and what they cost."""
