"""What scripts/benchmark.py measures: a module a suite, each with a function `measure`."""
