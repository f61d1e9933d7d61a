"""Latents: how they are stored, in files and shards, and read again."""
