"""Before decoding: how a request becomes the token ids a model reads."""
