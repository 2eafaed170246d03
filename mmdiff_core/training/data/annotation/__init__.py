"""Bare images to annotated ones: a caption, the class nouns in it, a box and a mask for each."""
