"""stae: images to latents and back with StupidAE."""

__version__ = "0.1.0"
