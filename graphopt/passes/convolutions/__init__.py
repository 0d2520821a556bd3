"""Convolutions that can be computed as one."""
