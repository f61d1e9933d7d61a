"""Images: files to pixels and pixels to files, as numpy arrays."""
