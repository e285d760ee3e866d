"""rewards of the decoding core."""
