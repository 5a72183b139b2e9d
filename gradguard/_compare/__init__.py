"""compare_modes: what one function costs under each mode."""
