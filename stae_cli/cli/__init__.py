"""The terminal: commands, options, messages and exit codes."""
