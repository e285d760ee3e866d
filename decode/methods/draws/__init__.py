"""draws of the decoding core."""
