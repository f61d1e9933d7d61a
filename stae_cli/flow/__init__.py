"""Flow: threads that read ahead and write behind, and batches in between."""
