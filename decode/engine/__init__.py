"""The engine: pages, storage, ragged batches, scheduling."""
