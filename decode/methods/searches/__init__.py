"""searches of the decoding core."""
