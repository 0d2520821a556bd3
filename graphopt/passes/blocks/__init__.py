"""Residual blocks: which there are, what each is worth, and how they are taken out (prune_blocks)."""
