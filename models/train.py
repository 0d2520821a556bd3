"""Train one net on Fashion-MNIST, export it and check the file.

``python -m models.train --net plain --epochs 5`` writes ``plain.onnx`` beside
this file and prints its top-1 on all 10,000 test images, scored in ONNX Runtime.

The recipe is the usual one: SGD with Nesterov momentum, one-cycle learning
rate, weight decay on convolution and fully connected weights only, label
smoothing, random horizontal flips and shifts of up to two pixels. The test
images are used for scoring alone: nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from models import architectures, export, fashion_mnist

BATCH = 128
SHIFT = 2
"""Largest shift of a training image, in pixels, each way."""
MOMENTUM = 0.9
LABEL_SMOOTHING = 0.1


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    train_pixels = torch.from_numpy(fashion_mnist.read_pixels("train", options.data).copy())
    train_labels = torch.from_numpy(fashion_mnist.read_labels("train", options.data))
    test_images = fashion_mnist.to_model_input(fashion_mnist.read_pixels("test", options.data))
    test_labels = fashion_mnist.read_labels("test", options.data)

    net = architectures.build(options.net, options.seed)
    started = time.monotonic()
    train(
        net,
        train_pixels,
        train_labels,
        epochs=options.epochs,
        peak_rate=options.rate,
        weight_decay=options.weight_decay,
        seed=options.seed,
        bfloat16=options.bfloat16,
        snapshot=(options.snapshot_step, options.snapshot) if options.snapshot else None,
    )
    minutes = (time.monotonic() - started) / 60

    path = options.output or Path(__file__).parent / f"{options.net}.onnx"
    export.export(net, path)
    score = export.top1(export.run(path, test_images), test_labels)
    difference = export.largest_difference(net, path, test_images[:1000])
    print(
        f"{path.name}: top-1 {score:.4f} on {len(test_labels)} test images, "
        f"largest difference to PyTorch {difference:.1e}, "
        f"{options.epochs} epochs in {minutes:.1f} minutes",
        flush=True,
    )


def train(
    net: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    peak_rate: float,
    weight_decay: float,
    seed: int,
    bfloat16: bool,
    snapshot: tuple[int, Path] | None = None,
) -> None:
    """Train ``net`` in place.

    Args:
        net: the net, in any state
        pixels: uint8 [count, 1, height, width]
        labels: int64 [count]
        epochs: passes over the images
        peak_rate: the highest learning rate of the cycle
        weight_decay: of convolution and fully connected weights
        seed: of the order and the augmentation of the images
        bfloat16: compute forward and backward in mixed precision
        snapshot: after so many steps, export the unfinished net to a file
    """
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = len(pixels) // BATCH
    net.train().to(memory_format=torch.channels_last)
    optimizer = _optimizer(net, weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_rate, total_steps=epochs * steps_per_epoch, pct_start=0.25
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    step = 0
    for epoch in range(epochs):
        started = time.monotonic()
        loss_sum, right = 0.0, 0
        for images, targets in _batches(pixels, labels, generator):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = net(images.to(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            loss_sum += loss.item()
            right += int((logits.argmax(dim=1) == targets).sum())
            if step % 100 == 0:
                seconds = (time.monotonic() - started) / ((step - 1) % steps_per_epoch + 1)
                print(f"step {step}: loss {loss.item():.3f}, {seconds:.3f} s a step", flush=True)
            if snapshot is not None and step == snapshot[0]:
                export.export(net, snapshot[1])
        print(
            f"epoch {epoch + 1} of {epochs}: loss {loss_sum / steps_per_epoch:.4f}, "
            f"top-1 in training {right / (steps_per_epoch * BATCH):.4f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    net.eval()


def _optimizer(net: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return SGD that decays weights of convolutions and matrices, not BatchNorm or biases."""
    parameters = list(net.parameters())
    return torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.1,  # replaced by the schedule
        momentum=MOMENTUM,
        nesterov=True,
    )


def _batches(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of augmented batches in random order; the last, incomplete one is left out."""
    order = torch.randperm(len(pixels), generator=generator)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield _augmented(pixels[chosen].float() / 255, generator), labels[chosen]


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each mirrored with probability one half and shifted at random."""
    count, _, height, width = images.shape
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    padded = nn.functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))[:, 0]
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1, 1), generator=generator)
    rows = down + torch.arange(height).view(1, -1, 1)
    columns = right + torch.arange(width).view(1, 1, -1)
    return padded[torch.arange(count).view(-1, 1, 1), rows, columns].unsqueeze(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train, export and check one net.")
    parser.add_argument("--net", required=True, choices=list(architectures.NETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.2, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision (faster on some CPUs)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEFAULT_FOLDER)
    parser.add_argument("--output", type=Path, help="ONNX file (default: beside this script)")
    parser.add_argument("--snapshot", type=Path, help="also export the unfinished net to this file")
    parser.add_argument("--snapshot-step", type=int, default=300)
    return parser


if __name__ == "__main__":
    main()
