"""The assertions, and leak_check."""
