"""What scripts/benchmark.py measures: each suite is a module with a function `measure`."""
