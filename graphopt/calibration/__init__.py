"""Calibration: streaming statistics of activations, and the ranges that observers make of them."""
