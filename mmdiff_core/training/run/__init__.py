"""One training run on Hugging Face accelerate: loop, optimiser, states on disk. Knows no model and no host."""
