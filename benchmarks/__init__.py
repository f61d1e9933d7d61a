"""Scripts behind every figure in the documents: `python -m benchmarks.NAME --help`."""
