"""Training: the modules and attention of inference, with gradients. Knows no host."""
