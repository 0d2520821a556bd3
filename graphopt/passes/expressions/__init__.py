"""When two nodes compute the same."""
