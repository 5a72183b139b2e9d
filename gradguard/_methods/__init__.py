"""inference_method, training_method."""
