"""Training: the same modules and attention as inference, with gradients. Pure torch and accelerate: knows no host."""
