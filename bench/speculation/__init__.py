"""Speculation: how fast, how well drafted, and how lengths are decided."""
