"""What is asked for: keys and their values, checked before anything starts. Imports no torch."""
