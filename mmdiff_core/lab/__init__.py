"""Experiments in the small world, which made its weights and tables; they do not ship."""
