"""The training of one run: the step, the optimizers, and what happens around them."""
