"""Channel order: how tensors' channels are moved about, which orders are free, and how to move the least.

``layout``, ``shapes``, ``nodes``, ``finding``: recognise data movement by executing it on labels. ``moves``: it as
index arrays. ``operators``, ``tracing``: which tensors must share an order. ``ordering``, ``planning``: the orders
that leave the least to move. ``writing``: the graph edited.
"""
