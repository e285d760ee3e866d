"""The benchmark suite: what the engine does, how fast and how well, measured beside what others use."""
