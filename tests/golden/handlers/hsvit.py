"""HSViT: every stage of the forward, gradients, and a training forward with its BatchNorm statistics."""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Sequential
from torch.nn import functional as F

from anyvit.deploy.reference import load_reference
from anyvit.models import HSViT
from anyvit.models.hsvit import checkpoint_filter_fn
from tests.golden.vectors import Golden, Handler

CONFIG = {
    *("num_channels", "image_size", "conv_kernel_nums", "conv_kernel_sizes", "pool_strides", "attn_num", "attn_depth"),
    *("attn_embed_dim", "num_heads", "num_classes", "dropout"),
    *("sub_module_path", "sub_module_feature_size", "conv_kernel_num", "enable_conv_layer"),
}


def _build(golden: Golden) -> HSViT:
    model = load_reference("hsvit", golden.weights, {key: golden.config[key] for key in CONFIG & golden.config.keys()})
    assert isinstance(model, HSViT)
    return model


def _model(golden: Golden) -> dict[str, object]:
    model = _build(golden)
    with torch.no_grad():
        stages = _stages(model, golden.inputs["x"])
    found = {f"out/{name}": value for name, value in stages.items()} | _step(golden, model)
    return {name: value for name, value in found.items() if name in golden.tensors}


def _stages(model: HSViT, images: Tensor) -> dict[str, Tensor]:
    first = {"conv_stage0": model.trunk[0](images)} if isinstance(model.trunk, Sequential) else {}
    tokens = model.tokens(images)
    groups = [model.attention.enter(tokens)]
    for block in model.attention.blocks:
        groups.append(block(groups[-1]))
    return {
        **first,
        "conv_features": model.trunk(images),
        "tokens": tokens,
        "group0_in": groups[0][0],
        "group0_block0": groups[1][0],
        "grouplast_out": groups[-1][-1],
        "cls": model.forward_features(images),
    }


def _step(golden: Golden, model: HSViT) -> dict[str, object]:
    """Loss, gradients and buffers under the reference's names: its weights are the leaves, ours are made from them."""
    leaves = {name: tensor.clone() for name, tensor in golden.under("w").items()}
    for tensor in leaves.values():
        tensor.requires_grad_(tensor.is_floating_point())
    for name in leaves:
        if "running" in name:
            leaves[name].requires_grad_(False)
    logits = functional_call(model, checkpoint_filter_fn(leaves, model), golden.inputs["x"])
    results: dict[str, object] = {"out/logits": logits}
    if "labels" in golden.inputs:
        loss = F.cross_entropy(logits, golden.inputs["labels"])
        loss.backward()
        results["out/loss"] = loss
        results |= {f"out/grad/{name}": leaves[name].grad for name in golden.under("out/grad")}
    return results | {f"out/buffer/{name}": leaves[name] for name in golden.under("out/buffer")}


def _train_step(golden: Golden) -> dict[str, object]:
    return _step(golden, _build(golden).train())


HANDLERS = {
    ("hsvit", "model"): Handler(CONFIG, _model),
    ("hsvit", "train_step"): Handler(CONFIG, _train_step),
}
