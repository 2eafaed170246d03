"""How alike generated images and references are: matching, scores, extractors, protocols."""
