"""Generated code of ``decoding.proto``; made by ``server/proto/generate.py``."""
