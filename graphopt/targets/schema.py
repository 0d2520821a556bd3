"""The facts about a target that passes read: what its runtime accepts and what its kernels reward.

A target profile is a TOML file; this module holds the values that it is read into. Values only, no behaviour. Data
types have one name everywhere, ONNX's: ``float32``, ``float16``, ``bfloat16``, ``int8`` ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Int8Rules:
    """How a runtime wants static int8 quantization written.

    Attributes:
        activation_dtype: ``uint8`` or ``int8``.
        weight_bits: 8, or 7 where the CPU sums pairs of u8*s8 products in 16 bits and would saturate
            (x86 without VNNI; ONNX Runtime doc 'Quantize ONNX models', section 'When to use reduce-range').
        per_channel: whether convolution weights carry a scale for each output channel.
        quantize_bias: whether the bias is stored as int32 with scale = activation scale * weight scale.
        symmetric: whether zero points must be 0 (then ranges are symmetric).
        quantized_operators: operators whose inputs may carry Q/DQ; empty: every one that has an integer kernel. Where
            it names some, Q/DQ stand on their inputs only, never between a convolution and what is fused into it.
        quantize_outputs: whether outputs of integer operators carry Q/DQ too, so that integers flow from one to the
            next; False: only where the next operator quantizes its input.
        residual_inputs: ``both`` or ``skip``: which inputs of an Add that follows a convolution carry Q/DQ.
        shared_concat_scale: whether all inputs and the output of a Concat must have one scale.
        weight_nodes: whether weights stay float constants followed by Q and DQ; False: integers followed by DQ.
        minimum_channels: convolutions with fewer input or output channels stay in float (0: no such limit).
        group_multiple: multiple that the channels of a group must have on both sides in a grouped convolution.
        implicit: whether the runtime wants a float graph and a calibration cache beside it instead of Q/DQ.
    """

    activation_dtype: str = "uint8"
    weight_bits: int = 8
    per_channel: bool = True
    quantize_bias: bool = True
    symmetric: bool = False
    quantized_operators: tuple[str, ...] = ()
    quantize_outputs: bool = True
    residual_inputs: str = "both"
    shared_concat_scale: bool = False
    weight_nodes: bool = False
    minimum_channels: int = 0
    group_multiple: int = 1
    implicit: bool = False


@dataclass(frozen=True)
class PowerMode:
    """A setting of the clocks.

    Attributes:
        clock: processor clock as a share of the one that the peaks hold at.
        bandwidth: memory bandwidth as a share of the device's.
    """

    clock: float
    bandwidth: float = 1.0


@dataclass(frozen=True)
class Device:
    """What a GPU can do, by its data sheet.

    Attributes:
        compute_capability: CUDA compute capability, e.g. ``8.7``.
        multiprocessors: streaming multiprocessors.
        peak_tops: precision -> dense 10^12 operations a second, two for each multiply-add, on the fastest units that
            take this precision (tensor cores where there are any); a precision without a figure is not computed in.
        bandwidth_gb_s: 10^9 bytes a second between memory and processor.
        memory_gb: 10^9 bytes that models may use.
        launch_us: microseconds of processor time to launch one kernel.
        power_modes: name -> clocks; empty where there is one setting.
        unverified: names of the figures above whose source could not be opened (``peak_tops.int8`` for one of a table);
            estimates are wider for them.
        power_mode: the one chosen, already worked into the figures above; empty: those of the data sheet.
    """

    compute_capability: str
    multiprocessors: int
    peak_tops: Mapping[str, float]
    bandwidth_gb_s: float
    memory_gb: float
    launch_us: float
    power_modes: Mapping[str, PowerMode] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    power_mode: str = ""


@dataclass(frozen=True)
class RuntimeModel:
    """How a runtime turns a graph into kernels, for the latency model.

    Attributes:
        name: as ``graphopt inspect --runtime`` takes it, e.g. ``tensorrt`` or ``eager-fp32``.
        fused: whether activations, normalizations and additions run inside the kernel before them.
        precision: data type that float operators run in where the graph says float32.
        constants: name of the set of fitted constants to start from (``graphopt/latency/constants.toml``).
        fitted: whether those constants were fitted on this very device and runtime; else they are transferred from
            another and the estimate's interval is wider.
        latency: constants by name that replace those of the set: what ``graphopt calibrate-target`` refitted to
            measurements on the device (``graphopt/latency/constants.py`` names them).
    """

    name: str
    fused: bool
    precision: str
    constants: str
    fitted: bool = False
    latency: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hardware:
    """What a device and its runtime accept and like.

    Attributes:
        name: for reports and cache keys only; no pass may branch on it.
        runtime: the runtime that executes the result, e.g. ``onnxruntime`` or ``tensorrt``.
        providers: execution providers that graphopt validates with on this machine, the preferred first.
        opset: lowest and highest opset version of the default domain that the runtime accepts.
        precisions: data types that the runtime executes natively.
        channel_multiple: data type -> multiple of channels that its kernels want.
        int8: how to write int8; None means that int8 is refused.
        int8_refusal: why int8 is refused, for the reader; empty where it is not.
        runtime_version: version of the runtime that the facts hold for.
        release: the software release chosen (JetPack), empty where there is but one.
        write_opset: opset version to raise models to where they are older; None: leave them.
        refused_operators: operators that the runtime does not import, of any domain as ``domain::Operator`` or of the
            default domain by the operator's name alone.
        written_out: operators that must be written as simpler ones before they are handed over (``HardSwish``).
        strongly_typed: whether the runtime computes in exactly the types that the graph declares; False: float32 may
            be run in float16 by an option.
        dynamic_shapes: ``any``, ``profiles`` (each dynamic input needs a range when the engine is built) or ``fixed``.
        accelerator: ``dla`` where a deep learning accelerator runs the net, with its limits; else empty.
        rules: names of the rules (graphopt/rules) that a model for this target must keep.
        device: the device's figures; None: the machine graphopt runs on, whose times are measured.
        runtimes: how the latency model sees each runtime of the target, the default first.
    """

    name: str
    runtime: str
    providers: tuple[str, ...]
    opset: tuple[int, int]
    precisions: tuple[str, ...]
    channel_multiple: dict[str, int] = field(default_factory=dict)
    int8: Int8Rules | None = None
    int8_refusal: str = ""
    runtime_version: str = ""
    release: str = ""
    write_opset: int | None = None
    refused_operators: tuple[str, ...] = ()
    written_out: tuple[str, ...] = ()
    strongly_typed: bool = False
    dynamic_shapes: str = "any"
    accelerator: str = ""
    rules: tuple[str, ...] = ()
    device: Device | None = None
    runtimes: tuple[RuntimeModel, ...] = ()

    @property
    def version(self) -> tuple[int, ...]:
        """``runtime_version``, to compare."""
        return _numbers(self.runtime_version)

    def computes_in(self, precision: str) -> bool:
        """Whether kernels take a data type as it is.

        bfloat16 is what compute capability 8.0 and TensorRT 9.1 brought, to each device alike (NVIDIA/TensorRT issue
        1883; TensorRT-RTX Support Matrix, 'Hardware and Precision'); no pass writes it.
        """
        if precision in self.precisions:
            return True
        if precision != "bfloat16" or self.device is None or self.runtime != "tensorrt" or self.accelerator:
            return False
        return _numbers(self.device.compute_capability) >= (8, 0) and self.version >= (9, 1)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@dataclass(frozen=True)
class Target:
    """A named device: its facts and the order of passes that serves it.

    Attributes:
        name: what the user types.
        summary: one line for ``graphopt targets``.
        hardware: the facts.
        recipe: pass names in the order they run.
        options: options that the recipe's passes get unless the user says otherwise, ``"pass.key"`` -> value.
        releases: releases of the device's software that may be chosen (``NAME@RELEASE``) -> what they are.
    """

    name: str
    summary: str
    hardware: Hardware
    recipe: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    releases: Mapping[str, str] = field(default_factory=dict)
