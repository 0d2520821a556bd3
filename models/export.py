"""Write a trained net as ONNX, and check the file against PyTorch."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

OPSET = 17


def export(net: nn.Module, path: Path) -> None:
    """Write ``net`` in evaluation mode, with its BatchNorm nodes and a free batch axis.

    ``TrainingMode.PRESERVE`` keeps the exporter from folding BatchNorm into the
    convolutions; the BatchNorm nodes themselves are exported in inference mode.
    """
    frozen = copy.deepcopy(net).eval().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated; its graphs are what most files in use look like.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            frozen,
            (torch.zeros(1, 1, 28, 28),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise RuntimeError(f"{path} has no BatchNormalization node: the exporter folded them")


def run(path: Path, images: NDArray[np.float32], batch: int = 500) -> NDArray[np.float32]:
    """Return the logits that ONNX Runtime computes, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"image": images[start : start + batch]})[0] for start in range(0, len(images), batch)]
    return np.concatenate(parts)


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of images, 0..1, whose largest logit is the label's."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def largest_difference(net: nn.Module, path: Path, images: NDArray[np.float32]) -> float:
    """Return the largest absolute difference between PyTorch's logits and ONNX Runtime's."""
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    return float(np.abs(expected - run(path, images)).max())
