"""Reference images: pixels, faces, what is wrong with them, and mixing the subjects made from
them."""
