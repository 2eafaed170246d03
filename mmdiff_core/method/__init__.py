"""The method of MM-Diff (arXiv 2403.15059). Pure torch: knows no host."""
