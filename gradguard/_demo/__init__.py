"""``gradguard demo``."""
