"""Checks of stored latents, and their statistics."""
