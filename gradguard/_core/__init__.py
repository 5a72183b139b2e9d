"""Guards, their state and stack, decorating, suspended bodies, and what differs between torches."""
