"""``gradguard run``: an unmodified program under the checks."""
