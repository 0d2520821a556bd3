"""graphopt makes a trained ONNX model faster for a target, and proves that it still answers right.

>>> import graphopt
>>> result = graphopt.optimize("model.onnx", data="samples.npz")  # doctest: +SKIP
>>> print(result.report)  # doctest: +SKIP
>>> result.save("model.cpu.onnx")  # doctest: +SKIP
"""
