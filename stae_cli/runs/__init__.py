"""Runs: encode, decode and roundtrip, in one process or shared by several."""
