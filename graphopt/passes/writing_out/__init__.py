"""Operators as simpler ones: the forms that ``write_out`` knows, by operator."""
