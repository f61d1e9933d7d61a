"""The fast form on CPUs, and on devices without kernels of their own."""
