"""Scaling on Scales: features at several scales, and what the model is given at each call."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from anyvit.models.layers.scales import merge, multi_scale, split
from tests.golden.vectors import Golden, Handler

NAMES = {
    "scales": "scales",
    "img_sizes": "img_sizes",
    "max_split_size": "tile",
    "resize_output_to_idx": "grid_of",
    "num_prefix_token": "num_prefix_tokens",
}


def _wrapper(golden: Golden) -> dict[str, object]:
    models = {"vit": _vit(golden), "conv": _conv(golden)}
    results: dict[str, object] = {}
    cases = {}
    for name, case in golden.config["cases"].items():
        given, features = _run(models[case["model"]], golden.inputs[case["input"]], case)
        cases[name] = {
            **case,
            "n_model_calls": len(given),
            "model_input_shapes": [list(tiles.shape) for tiles in given],
        }
        results[f"out/{name}/features"] = features
        for call, (tiles, thinned) in enumerate(zip(given, case["model_input_stored_every_4th_pixel"], strict=True)):
            results[f"out/{name}/model_input{call}"] = tiles[..., ::4, ::4] if thinned else tiles
    for name in golden.under("out/split"):
        results[f"out/split/{name}"] = split(golden.inputs["split_in"], int(name))
    for name in golden.under("out/merge"):
        results[f"out/merge/{name}"] = merge(golden.inputs["merge_in"], int(name))
    return {"cases": cases} | {name: value for name, value in results.items() if name in golden.tensors}


def _run(model, images: Tensor, case: dict) -> tuple[list[Tensor], Tensor]:
    given: list[Tensor] = []

    def recorded(tiles: Tensor) -> Tensor:
        given.append(tiles)
        return model(tiles)

    arguments = {ours: case[theirs] for theirs, ours in NAMES.items() if theirs in case}
    if case.get("split_forward"):
        arguments["max_batch"] = len(images)
    with torch.no_grad():
        features = multi_scale(recorded, images, **arguments)
    assert (features.ndim == 4) is (case.get("output_shape") == "bchw")
    return given, features


def _vit(golden: Golden):
    model = VisionTransformer(**golden.config["vit"]).eval()
    model.load_state_dict({n.removeprefix("vit/"): t for n, t in golden.weights.items() if n.startswith("vit/")})
    return model.forward_features


def _conv(golden: Golden):
    weights, stride = golden.weights, golden.config["conv"]["kernel_and_stride"]
    return lambda images: torch.tanh(F.conv2d(images, weights["conv/weight"], weights["conv/bias"], stride=stride))


HANDLERS = {
    ("s2", "wrapper"): Handler({"vit", "conv"}, _wrapper, {"out/split/": 0.0, "out/merge/": 0.0}),
}
