"""Six small nets for trying graphopt on, one for each common building block.

The trained ONNX files and the data samples lie beside this file; the modules
here made them and can make them again (see README.md). ``mobilenet_v1`` builds larger ones with random
weights, for counting and timing. Nothing in graphopt itself imports this package.
"""
