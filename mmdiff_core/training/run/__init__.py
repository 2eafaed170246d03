"""One training run on accelerate: loop, optimiser, states. Knows no model and no host."""
