"""The version of stae."""

__version__ = "0.1.0"
