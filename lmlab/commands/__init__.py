"""The commands of the lab: their options, and the functions that run them."""
