"""Moving transposes through a graph: how operators follow a change of axis order, and where it pays.

``permutations`` is the algebra, ``moves`` says what it means that a node works on permuted axes, ``rules`` and its
kin know each operator, ``values`` sees a tensor and all its transposed forms as one, ``candidates`` finds what could
change together, ``prices`` and ``cut`` what should, and ``rewire`` does it.
"""
