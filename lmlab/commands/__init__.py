"""The commands: what is typed, and who answers it."""
