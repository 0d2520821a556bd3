"""What depends on no input: where it is, and its values."""
