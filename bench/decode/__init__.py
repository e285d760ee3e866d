"""Throughput of decoding beside transformers."""
