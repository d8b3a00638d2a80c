"""The training of one run: the step, the optimizers, and all that happens around them."""
