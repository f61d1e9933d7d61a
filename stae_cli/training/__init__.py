"""Training a StupidAE: data, start, optimizers, the loop, and the state that survives a kill."""
