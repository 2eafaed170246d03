"""Annotated images on disk to training examples. Pure torch: knows no host."""
