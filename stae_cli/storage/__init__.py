"""Storage: where inputs are and outputs go, on this machine or on a store."""
