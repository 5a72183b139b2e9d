"""What several rules read of a file: loops that add up, callers, entry points, what is returned."""
