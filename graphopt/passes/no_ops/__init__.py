"""What changes nothing, and what nobody reads."""
