"""torchvision networks with random weights and BatchNorm statistics that fit, exported to ONNX with BatchNorm unfolded.

Random scales and shifts make channels differ in range as they do in trained networks; the statistics are then
averaged over training-mode passes, so that activations neither explode nor vanish. Needs torch and torchvision,
which only this module imports. The classes mean nothing: such a network serves latency and SQNR, not accuracy.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from benchmarks.images import images

NETS = ("resnet50", "mobilenet_v2", "shufflenet_v2_x1_0", "efficientnet_b0", "densenet121", "vgg16_bn")
OPSET = 17
SEED_STATISTICS = 11  # images for BatchNorm statistics; calibration and evaluation images have seeds of their own
BATCH, BATCHES = 16, 3


def build(name: str) -> nn.Module:
    """The network in inference mode, with random weights and fitted BatchNorm statistics."""
    torch.manual_seed(0)
    net: nn.Module = torchvision.models.get_model(name, weights=None)
    net.eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over the passes below
        norm.train()  # only BatchNorm: dropout and stochastic depth stay off
    pixels = torch.from_numpy(np.stack(list(images(SEED_STATISTICS, BATCH * BATCHES))))
    with torch.no_grad():
        for batch in pixels.split(BATCH):
            net(batch)
    return net.eval()


def export(name: str, path: Path) -> None:
    """Write `name` as ONNX: input `input` [batch, 3, 224, 224], output `output`, BatchNormalization nodes kept."""
    partial = path.with_suffix(".partial")
    torch.onnx.export(
        build(name),
        (torch.from_numpy(np.stack(list(images(SEED_STATISTICS, 1)))),),
        str(partial),
        dynamo=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        # EVAL (the default) would fuse Conv and BatchNorm; PRESERVE of a net in inference mode keeps both.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    partial.replace(path)
