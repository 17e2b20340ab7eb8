"""HydraViT: forward of every subnetwork, gradients, optimizer steps, and the draw of head counts."""

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from anyvit.deploy.reference import load_reference
from anyvit.models import HydraViT
from anyvit.training.objectives.sampler import HeadSampler
from tests.golden.vectors import Golden, Handler

SHAPE = {"img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"}


def _build(golden: Golden) -> HydraViT:
    return load_reference("hydravit", golden.weights, {key: golden.config[key] for key in SHAPE & golden.config.keys()})


def _model(golden: Golden) -> dict[str, object]:
    model, images = _build(golden), golden.inputs["x"]
    results: dict[str, object] = {
        "head_dim": model.head_dim,
        "norm_eps": model.norm.eps,
        "qkv_bias": model.blocks[0].attn.qkv.bias is not None,
    }
    for heads in golden.config["heads_evaluated"]:
        with torch.no_grad():
            results |= {f"out/k{heads}/{name}": value for name, value in _stages(model, images, heads).items()}
    graded = {match[1] for name in golden.tensors if (match := re.match(r"out/grad_k(\d+)/", name))}
    for heads in graded:
        loss = F.cross_entropy(model(images, heads=int(heads)), golden.inputs["labels"])
        model.zero_grad()
        loss.backward()
        for name in golden.under(f"out/grad_k{heads}"):
            gradient = loss if name == "loss" else model.get_parameter(name).grad
            results[f"out/grad_k{heads}/{name}"] = gradient
        _assert_zero_outside(model, int(heads))
    return results


def _stages(model: HydraViT, images: Tensor, heads: int) -> dict[str, Tensor]:
    narrow = model.subnetwork(heads)
    tokens = narrow._pos_embed(narrow.patch_embed(images))
    logits = narrow(images)
    assert torch.equal(model(images, heads=heads), logits)
    return {
        "tokens": tokens,
        "block0": narrow.blocks[0](tokens),
        "norm": narrow.forward_features(images),
        "logits": logits,
    }


def _assert_zero_outside(model: HydraViT, heads: int) -> None:
    for name, inside in model.subnetwork(heads).named_parameters():
        gradient = model.get_parameter(name).grad
        assert gradient is not None, f"{name} has no gradient"
        gradient = gradient.clone()
        torch.as_strided(gradient, inside.shape, inside.stride()).zero_()
        assert not gradient.any(), f"the gradient of {name} is not zero outside the slice"


def _adamw_steps(golden: Golden) -> dict[str, object]:
    assert golden.config["param_groups"] == "one group, decay on everything"
    model = _build(golden).train()
    settings = {key: golden.config[key] for key in ("lr", "weight_decay", "betas", "eps")}
    optimizer = getattr(torch.optim, golden.config["optimizer"])(model.parameters(), **settings)
    losses = []
    for step, heads in enumerate(golden.config["heads_per_step"]):
        loss = F.cross_entropy(model(golden.inputs[f"x{step}"], heads=heads), golden.inputs[f"y{step}"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = {f"out/w/{name}": model.get_parameter(name).detach() for name in golden.under("out/w")}
    return {"out/losses": torch.tensor(losses), "head_dim": model.head_dim, **after}


def _sampler(golden: Golden) -> dict[str, object]:
    results = {}
    for name, case in golden.config.items():
        sampler = HeadSampler(case["heads"], case["weights"], case["seed"])
        results[f"out/{name}"] = [sampler.draw(step) for step in range(case["steps"])]
    return results


class _Everything:
    """The whole config: each key is a case of its own."""

    def __contains__(self, key: object) -> bool:
        return True


HANDLERS = {
    ("hydravit", "model"): Handler(SHAPE | {"heads_evaluated"}, _model),
    # Adam amplifies rounding where gradients are almost zero
    ("hydravit", "adamw_steps"): Handler(
        SHAPE | {"heads_per_step", "optimizer", "lr", "weight_decay", "betas", "eps", "param_groups"},
        _adamw_steps,
        {"out/w/": 2e-4},
    ),
    ("hydravit", "sampler"): Handler(_Everything(), _sampler),
}
