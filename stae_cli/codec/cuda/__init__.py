"""The fast form on CUDA devices: Triton kernels between the matrix products."""
