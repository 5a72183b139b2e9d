"""Eval mode for a block, counted per module over all threads."""
