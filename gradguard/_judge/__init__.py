"""The one judge of training and inference: checks over what was seen, whoever has seen it."""
