"""Static int8 quantization in Q/DQ form, placed where the target's kernels reward it.

::

    before   x -> Conv -> Relu -> Conv -> y
    after    x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> Conv -> Q -> DQ -> y     (weights and biases behind DQ)

1. Cut the graph into units (units.py) and time each in both precisions on this CPU (kernels.py, cached).
2. Choose the precision of every unit: the exact minimum of kernel and conversion times (cut.py).
3. Stream calibration samples and keep histograms (calibration/); choose the observer, and whether to correct biases, by
   the noise in the outputs on samples not used for calibration.
4. Write Q/DQ (write.py), and read off ONNX Runtime's optimized graph that every unit really runs in int8 (fused.py);
   units that do not are put back to float and named.
5. Offer the fastest assignment first; each further candidate leaves the units that cost the most accuracy for the time
   they save in float (sensitivity.py), for half the noise each time.
"""

from graphopt.passes.quantize_int8.quantize import QuantizeInt8

__all__ = ["QuantizeInt8"]
