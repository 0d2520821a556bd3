"""Makes a changed network answer like the original again, in closed form: no labels, no gradients, no training."""
