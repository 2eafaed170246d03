"""Where subjects may act: boxes and masks, attention bias, attention maps, layers. Pure torch:
knows no host."""
