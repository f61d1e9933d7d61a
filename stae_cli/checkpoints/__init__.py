"""Checkpoints: which one a name means, reading and checking it, its fingerprint."""
