"""Latents that other programs wrote: found in their files, read, and back to raw values."""
