"""Where on the call stack the mode was switched, found when a message is made."""
