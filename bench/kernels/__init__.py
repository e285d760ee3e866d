"""The kernels: what each takes beside plain PyTorch, and the machine code that it compiles to."""
