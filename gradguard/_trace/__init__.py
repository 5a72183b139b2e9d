"""Every switch of the mode, recorded: trace()."""
