"""The disk: images, latents, pictures and run records, as numpy arrays in and out."""
