"""`gradguard check`: faults found by reading source, which is never imported or run."""
