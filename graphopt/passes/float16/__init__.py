"""Float16: which nodes can and should compute in it, and the graphs that say so (``convert_float16``).

- ``sites``: nodes with float32 inputs or outputs, and operators that are left in float32
- ``ranges``: what calibration says against float16, node by node
- ``plan``: which of the others are worth it, as a minimum cut
- ``write``: the graph in float16; ``simulation``: one in float32 that rounds as it would
- ``gentler``: which nodes add the most noise, where all of them add too much
"""
