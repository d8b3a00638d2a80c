"""A laboratory for small language models. README.md says in which order to read it."""
