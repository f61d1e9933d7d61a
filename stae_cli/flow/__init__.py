"""Flow: threads that read ahead and write behind."""
