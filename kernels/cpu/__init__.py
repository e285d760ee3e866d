"""The operations on the CPU: what engines run there, and what the Triton kernels must agree with, token for token."""
