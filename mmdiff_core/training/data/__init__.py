"""Annotated images on disk to training examples, and bare images to annotated ones. Pure torch: knows no host."""
