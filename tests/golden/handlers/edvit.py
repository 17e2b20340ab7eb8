"""ED-ViT: class-wise pruning in three stages, greedy placement, and the fusion head."""

from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.models.layers.indexed import Kept, sliced
from anyvit.scaling.spread.fusion import SHRINK, Fusion
from anyvit.scaling.spread.placement import Room, place
from anyvit.scaling.spread.pruning import prune
from anyvit.scaling.spread.sizes import Size
from tests.golden.vectors import Golden, Handler

SHAPE = {"img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"}


def _prune(golden: Golden) -> dict[str, object]:
    model = VisionTransformer(**{key: golden.config[key] for key in SHAPE}).double().eval()
    model.load_state_dict(golden.weights)
    images = golden.inputs["x"]
    found = prune(model, images, golden.config["heads_kept"])
    channels = sliced(model, replace(Kept.everything(model), embed=found.kept.embed))
    heads = sliced(model, replace(found.kept, hidden=Kept.everything(model).hidden))
    weights = found.model.state_dict()
    with torch.no_grad():
        return {
            "head_dim": found.model.blocks[0].attn.head_dim,
            "out/original_logits": model(images),
            "out/stage1_scores": found.channel_scores,
            "out/stage1_keep": found.kept.embed,
            "out/stage1_logits": channels(images),
            "out/stage2_scores": torch.stack(found.head_scores),
            "out/stage2_keep": found.kept.heads,
            "out/stage2_logits": heads(images),
            "out/stage3_scores": torch.stack(found.hidden_scores),
            "out/stage3_keep": found.kept.hidden,
            "out/logits": found.model(images),
            "out/feature": found.model.forward_head(found.model.forward_features(images), pre_logits=True),
            **{f"out/w/{name}": weights[name] for name in golden.under("out/w")},
        }


def _assign(golden: Golden) -> dict[str, object]:
    results: dict[str, object] = {}
    for case in sorted({name.split("/")[0] for name in golden.inputs}):
        given = {name: value.tolist() for name, value in golden.under(f"in/{case}").items()}
        names = [f"device {index}" for index in range(len(given["memory"]))]
        room = Room(names, given["memory"], given["energy"], one_per_device=bool(given["one_per_device"]))
        needs = [Size(macs=cost, weights=size) for cost, size in zip(given["cost"], given["size"], strict=True)]
        found = place(needs, room)
        results[f"out/{case}/device"] = found.devices if found.failed is None else [-1]
        results[f"out/{case}/failed_submodel"] = -1 if found.failed is None else found.failed
    return results


def _fusion(golden: Golden) -> dict[str, object]:
    features = [golden.inputs[f"feature{index}"] for index in range(len(golden.inputs))]
    fusion = Fusion([part.shape[1] for part in features], golden.config["num_classes"])
    fusion.load_state_dict(golden.weights)
    return {"out/logits": fusion(features), "shrink": SHRINK}


HANDLERS = {
    ("edvit", "assign"): Handler((), _assign, {"out": 0}),
    ("edvit", "fusion"): Handler({"num_classes"}, _fusion, {"out": 1e-6}),
    ("edvit", "prune"): Handler(SHAPE | {"heads_kept"}, _prune, {"out": 1e-9}),
}
