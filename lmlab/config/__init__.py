"""Keys and their values, checked before anything starts. Imports no torch."""
