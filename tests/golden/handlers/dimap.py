"""DIMAP: the importance of weights, masks at each sparsity, one module in the place of three, and hidden units."""

import math

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.scaling.shrink.importance import MODULES, importance, keep_all_but, prunable
from anyvit.scaling.shrink.masks import masked, weakest
from anyvit.scaling.shrink.units import hidden_importance
from tests.golden.vectors import Golden, Handler

SHAPE = {
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "depths",
    "num_heads",
    "window_size",
    "num_classes",
    "mlp_ratio",
}
FAMILIES = {"swin": SwinTransformer, "vit": VisionTransformer}
AS_ONE = {"all": tuple(ending for endings in MODULES.values() for ending in endings)}


def _cases(golden: Golden) -> dict[str, object]:
    return {f"out/{case}": importance(golden.inputs[case]) for case in golden.config["cases"]}


def _model(golden: Golden) -> dict[str, object]:
    model = FAMILIES[golden.kind](**{key: golden.config[key] for key in SHAPE & golden.config.keys()}).eval()
    model.load_state_dict(golden.weights)
    weights = {name: weight for part in prunable(model).values() for name, weight in part.items()}
    found: dict[str, object] = {"kind": golden.kind}
    found |= {f"out/importance/{name}": importance(weight) for name, weight in weights.items()}
    found["out/dense/logits"] = model(golden.inputs["x"])
    for sparsity in golden.config["sparsities"]:
        found |= _at(golden, model, sparsity)
    single = golden.config["single_module_sparsity"]
    masks = weakest(model, single, modules=AS_ONE)
    found |= {f"out/single_s{single}/mask/{name}": keep for name, keep in masks.keep.items()}
    return found | _units(golden, model)


def _at(golden: Golden, model: nn.Module, sparsity: float) -> dict[str, object]:
    masks, start = weakest(model, sparsity), f"out/s{sparsity}"
    for module, threshold in masks.thresholds.items():  # closer than the tolerance of what begins alike
        expected = golden.tensors[f"{start}/threshold/{module}"].item()
        assert math.isclose(threshold, expected, rel_tol=1e-9), f"{start}/threshold/{module}"
    with torch.no_grad():
        logits = masked(model, masks.keep)(golden.inputs["x"])
    return {
        f"{start}/logits": logits,
        **{f"{start}/mask/{name}": keep for name, keep in masks.keep.items()},
        **{f"{start}/threshold/{module}": [threshold] for module, threshold in masks.thresholds.items()},
    }


def _units(golden: Golden, model: nn.Module) -> dict[str, object]:
    """The share that goes stands in the tensors' names alone."""
    scores = hidden_importance(model)
    found: dict[str, object] = {}
    for start in {name.split("/")[1] for name in golden.tensors if name.startswith("out/neuron_")}:
        count = math.floor(float(start.removeprefix("neuron_")) * sum(map(Tensor.numel, scores.values())))
        stays, _ = keep_all_but(list(scores.values()), count)
        found |= {f"out/{start}/importance/{path}": part for path, part in scores.items()}
        found |= {f"out/{start}/mask/{path}": part for path, part in zip(scores, stays, strict=True)}
    return found


TAKES = SHAPE | {"sparsities", "single_module_sparsity", "seed"}
CLOSE = {"out/importance": 1e-6, "out/neuron": 1e-9}

HANDLERS = {
    ("dimap", "importance_cases"): Handler({"cases"}, _cases, {"out": 1e-12}),
    ("dimap", "swin"): Handler(TAKES, _model, CLOSE),
    ("dimap", "vit"): Handler(TAKES, _model, CLOSE),
}
