"""The network: its definition, its fast form, its checkpoints and its cost."""
