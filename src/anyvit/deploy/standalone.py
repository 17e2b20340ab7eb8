"""Label images with a model that AnyViT has exported. AnyViT itself is not needed.

    python predict.py MODEL IMAGE [IMAGE ...]

MODEL is a .onnx file (needs ONNX Runtime), the .xml of an OpenVINO folder (needs OpenVINO), a .pt2 file (needs
PyTorch), or the cascade.json that lies beside two of these. NumPy and Pillow are needed always. Labels and
preprocessing come from the model itself.
"""

# This file travels inside every exported model, and every export is verified through it.
from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Run = Callable[[np.ndarray], np.ndarray]

RULE = "cascade.json"
"""The file that says which of two models answers."""


def read(path: str) -> Image.Image:
    """The image upright, in 8-bit RGB: alpha over white, 16 bits over their full range."""
    image: Image.Image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def prepare(image: Image.Image, rule: dict[str, Any]) -> np.ndarray:
    """The float32 input (3, S, S): resize by the shorter side, keep the centre, normalize."""
    size = rule["image_size"]
    side, shorter = round(size / rule["crop_ratio"]), min(image.size)
    width, height = (round(length * side / shorter) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[rule["interpolation"].upper()])
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / np.float32(255)
    return ((pixels - np.array(rule["mean"], np.float32)) / np.array(rule["std"], np.float32)).transpose(2, 0, 1)


def open_model(path: str) -> tuple[Run, list[str], dict[str, Any]]:
    """What turns inputs (B, 3, S, S) into probabilities (B, K), the K labels, and the rule of the preprocessing."""
    opening = {"onnx": _open_onnx, "xml": _open_openvino, "pt2": _open_torch, "json": _open_cascade}[
        path.rpartition(".")[2]
    ]
    run, texts = opening(path)
    return run, json.loads(texts["labels"]), json.loads(texts["preprocessing"])


def _open_onnx(path: str) -> tuple[Run, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0], session.get_modelmeta().custom_metadata_map


def _open_openvino(path: str) -> tuple[Run, dict[str, str]]:
    model = _core().read_model(path)
    # on processors with bfloat16 or float16, OpenVINO would otherwise round to it
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    texts = {name: model.get_rt_info(["anyvit", name]).value for name in ("labels", "preprocessing")}
    return lambda images: compiled(images)[0], texts


@functools.cache
def _core() -> Any:
    """One for all models: where several go in any order, OpenVINO leaves a stack for signals that is gone."""
    import openvino

    return openvino.Core()


def _open_torch(path: str) -> tuple[Run, dict[str, str]]:
    import torch

    texts = {"labels": "", "preprocessing": ""}  # filled in by the reader
    model = torch.export.load(path, extra_files=texts).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return run, texts


def _open_cascade(path: str) -> tuple[Run, dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        rule = json.load(file)
    small, large = (open_model(os.path.join(os.path.dirname(path), name))[0] for name in rule["models"])

    def run(images: np.ndarray) -> np.ndarray:
        probabilities = np.array(small(images))
        unsure = probabilities.max(1).astype(np.float64) < rule["threshold"]
        if unsure.any():
            probabilities[unsure] = large(images[unsure])
        return probabilities

    return run, {name: json.dumps(rule[name]) for name in ("labels", "preprocessing")}


def main(model: str, *images: str) -> None:
    """Print path, label and probability of each image."""
    run, labels, rule = open_model(model)
    for path in images:
        probabilities = run(prepare(read(path), rule)[None])[0]
        best = int(probabilities.argmax())
        print(f"{path}\t{labels[best]}\t{probabilities[best]:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
