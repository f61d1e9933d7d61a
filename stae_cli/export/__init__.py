"""Stored latents in the formats that trainers read."""
