"""Triton kernels of the operations. Imported only where one of them runs: Triton is optional."""
