"""Speed: timing the codec and other autoencoders side by side on one machine."""
