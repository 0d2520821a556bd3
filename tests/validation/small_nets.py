"""Small models for the tests of this folder."""

import numpy as np
import onnx
import onnx.parser


def build(text, **weights):
    """A model from its text, with initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    onnx.checker.check_model(model)
    return model


def linear(weight):
    """y = x @ weight, weight [4, 4]."""
    return build("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=weight)
