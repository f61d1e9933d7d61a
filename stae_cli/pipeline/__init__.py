"""The data path: files are read ahead, batched, run through the network, and written behind."""
