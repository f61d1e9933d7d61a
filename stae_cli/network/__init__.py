"""The network: its definition, its sizes and what it costs."""
