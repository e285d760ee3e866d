"""policies of the decoding core."""
