"""Subgraphs put in the place of the nodes that hold them."""
