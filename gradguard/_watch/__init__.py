"""watch_training and watch_inference."""
