"""EViT and ToMe: whole models with their run-time overrides, the matching alone, and the keep rate in training."""

import json
from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from anyvit.deploy.reference import load_reference
from anyvit.models.layers.evit import complement, keep_rate_at
from anyvit.models.layers.token_reduction import ReducedViT, Tokens, attend
from anyvit.models.layers.tome import Matching, match, match_every, merge_by_size, merge_schedule, tome
from tests.golden.vectors import Golden, Handler

SHAPE = {"img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"}
EVIT = SHAPE | {"in_chans", "qkv_bias", "keep_rate", "fuse_token"}
TOME = SHAPE | {"global_pool", "fc_norm"}


class Cases:
    """Every key of the config names a case, which is an input."""

    def __contains__(self, key: object) -> bool:
        return True


def _vit(golden: Golden) -> dict[str, object]:
    config = {key: golden.config[key] for key in EVIT & golden.config.keys()}
    model = load_reference("evit", golden.weights, config)
    images = golden.inputs["x"]
    found = {"norm_eps": model.norm.eps}
    for case, override in {"default": {}, **golden.config["overrides"]}.items():
        found |= {f"out/{case}/{name}": value for name, value in _reduced(model, images, override).items()}
    if "x_resized" in golden.inputs:
        images = golden.inputs["x_resized"]
        larger = load_reference("evit", golden.weights, {**config, "img_size": images.shape[-1]})
        found |= {f"out/resized/{name}": value for name, value in _reduced(larger, images, {}).items()}
    return {name: value for name, value in found.items() if not name.startswith("out") or name in golden.tensors}


@torch.no_grad()
def _reduced(model: ReducedViT, images: Tensor, override: Mapping[str, object]) -> dict[str, object]:
    stages = list(model.stages(images, **override))
    found: dict[str, object] = {
        "patch_embed": model.patch_embed(images),
        "left_tokens": torch.tensor([tokens.x.shape[1] - 1 for tokens in stages]),
        "logits": model(images, **override),
    }
    before, reductions = Tokens(model._pos_embed(model.patch_embed(images)), 1), 0
    for index, (block, tokens) in enumerate(zip(model.blocks, stages, strict=True)):
        found[f"block{index}/tokens"] = tokens.x
        if len(tokens.maps) > len(before.maps):
            kept = tokens.maps[-1].index
            _, seam = attend(block.attn, block.norm1(before.x))
            origins = tokens.origins()[:, 1 : 1 + kept.shape[1]] - 1
            found[f"block{index}/cls_attn"] = seam.class_row()[:, 1:]
            found[f"block{index}/idx"] = kept
            found[f"real_idx{reductions}"] = origins.clamp(min=0)  # a fused token is patch 0 to the reference
            reductions += 1
        before = tokens
    return found


def _schedule(golden: Golden) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, config in golden.config.items():
        if "dims" in config:
            for count in config["dims"]:
                found[f"out/compl_{count}"] = complement(golden.inputs[f"idx_{count}"], count)
            continue
        steps = range(config["iters_per_epoch"] * (config["total_epochs"] + 3))
        rule = {"steps_per_epoch": config["iters_per_epoch"], "base": config["base_keep_rate"]}
        ends = {"start": config["warmup_epochs"], "end": config["total_epochs"]}
        found[f"out/{name}"] = torch.tensor([keep_rate_at(step, **rule, **ends) for step in steps], dtype=torch.float64)
    return found


def _matching(golden: Golden) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, case in golden.config.items():
        if name == "parse_r":
            continue
        given = golden.under(f"in/{name}")
        if "k" in case:
            matching = match_every(given["metric"], case["k"])
            parts = {
                "merge_mean": matching.merge(given["x"], "mean"),
                "unmerge": matching.unmerge(matching.merge(given["x"], "mean")),
            }
        else:
            matching = match(given["metric"], case["r"], case["class_token"] + case["distill_token"])
            parts = _merged(matching, given["x"], given["size"])
        found |= {f"out/{name}/{part}": value for part, value in parts.items()}
    for name in golden.under("out/parse_r"):
        found[f"out/parse_r/{name}"] = _parsed(name)
    return {name: value for name, value in found.items() if name in golden.tensors}


def _merged(matching: Matching, x: Tensor, size: Tensor) -> dict[str, Tensor]:
    total = matching.merge(x, "sum")
    mean, sizes = merge_by_size(matching, x, size)
    mean_of_ones, sizes_of_ones = merge_by_size(matching, x, None)
    return {
        "merge_sum": total,
        "merge_mean": matching.merge(x, "mean"),
        "merge_amax": matching.merge(x, "amax"),
        "unmerge_of_sum": matching.unmerge(total),
        "wavg_x": mean,
        "wavg_size": sizes,
        "wavg_nosize_x": mean_of_ones,
        "wavg_nosize_size": sizes_of_ones,
        "source": Tokens(total, 0, maps=(matching,)).sources(),
    }


def _parsed(words: str) -> Tensor:
    depth, _, r = words.partition(",")
    if r.startswith("("):
        mean, inflect = json.loads(f"[{r[1:-1]}]")
        return torch.tensor(merge_schedule(mean, int(depth), inflect=inflect))
    return torch.tensor(merge_schedule(json.loads(r), int(depth)))


def _tome_vit(golden: Golden) -> dict[str, object]:
    config, images = golden.config, golden.inputs["x"]
    plain = VisionTransformer(**{key: config[key] for key in TOME & config.keys()}).eval()
    plain.load_state_dict(golden.weights)
    r, inflect = config["r"] if config["r_kind"] == "tuple" else (config["r"], 0.0)
    model = tome(plain, r, inflect=inflect, proportional=config["prop_attn"])
    with torch.no_grad():
        found = {
            "logits": model(images),
            "logits_r0": tome(plain, 0)(images),
            "logits_unpatched": plain(images),
        }
        before = Tokens(model._pos_embed(model.patch_embed(images)), 1)
        for index, (block, tokens) in enumerate(zip(model.blocks, model.stages(images), strict=True)):
            sizes = before.sizes if block.reducer.proportional else None
            found[f"block{index}/metric"] = attend(block.attn, block.norm1(before.x), sizes)[1].mean_key()
            found[f"block{index}/tokens"] = tokens.x
            found[f"block{index}/size"] = tokens.sizes
            before = tokens
    return {f"out/{name}": value for name, value in {**found, "source": before.sources()}.items()}


HANDLERS = {
    ("evit", "vit"): Handler(EVIT | {"overrides", "seed"}, _vit),
    ("evit", "schedule"): Handler(Cases(), _schedule, {"out": 1e-12}),
    ("evit", "tome_matching"): Handler(Cases(), _matching, {"out": 1e-6}),
    ("evit", "tome_vit"): Handler(TOME | {"r", "r_kind", "prop_attn", "variant", "seed"}, _tome_vit),
}
