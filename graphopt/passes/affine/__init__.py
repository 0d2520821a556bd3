"""Chains of scales and shifts, and the linear operators that take them up."""
