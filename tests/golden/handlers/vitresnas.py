"""ViT-ResNAS: the network and its super-network stage by stage, masks and their norm, the search's operators, mixup."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.deploy.reference import load_reference
from anyvit.models.layers.channel_drop import ChannelDrop
from anyvit.models.layers.masked import masked_layer_norm
from anyvit.models.layers.rewiring import order_heads, order_hidden
from anyvit.models.vit_resnas import ViTResNAS, checkpoint_filter_fn
from anyvit.models.vit_resnas_layers import Attention
from anyvit.models.vit_resnas_layout import flops, macs, read_network_def
from anyvit.models.vit_resnas_space import PUBLISHED, SHARES, space_of
from anyvit.models.vit_resnas_super import searchable
from anyvit.scaling.design.supernet import Band, into_band
from anyvit.scaling.design.vit_resnas import ResNASGenes, genes_of
from anyvit.training.token_mixup import Draws, mix
from tests.golden.vectors import Golden, Handler

WORDS = {"network_def", "img_size", "patch_size", "distill_token", "patch_output", "num_classes"}


def _build(golden: Golden) -> ViTResNAS:
    words = {word: golden.config[word] for word in WORDS & golden.config.keys()}
    model = load_reference("vitresnas", golden.weights, words)
    assert isinstance(model, ViTResNAS)
    return model


@torch.no_grad()
def _model(golden: Golden) -> dict[str, object]:
    model, images = _build(golden), golden.inputs["x"]
    prefix = model.num_prefix_tokens
    found: dict[str, object] = {"out/patch_embed": model.patch_embed(images)}
    tokens = model.embed(images)
    for index, block in enumerate(model.blocks):
        found[f"out/block{index}"] = tokens = block(tokens)
    normalized = model.forward_features(images)
    found["out/cls_logits"] = model.cls_head(normalized[:, 0])
    if prefix == 2:
        found["out/dst_logits"] = model.dst_head(normalized[:, 1])
        model.set_distilled_training()
        pair = model.train().forward_head(normalized)
        torch.testing.assert_close(pair, (found["out/cls_logits"], found["out/dst_logits"]))
    else:
        torch.testing.assert_close(model(images), found["out/cls_logits"])
    found |= _in_training(model, images) if model.patch_output else {}
    settings = {"num_prefix_tokens": prefix, "strict_reference": True}
    return found | {
        "mac_estimate": macs(model.network_def, model.img_size, **settings),
        "flop_estimate": flops(model.network_def, model.img_size, **settings),
        "n_params": sum(parameter.numel() for parameter in model.parameters()),
    }


def _in_training(model: ViTResNAS, images: Tensor) -> dict[str, object]:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    found = {}
    for output in ("seq", "avg"):
        model.patch_output = output
        found["out/train_cls_logits"], found[f"out/train_patch_logits_{output}"] = model(images)
    return found


@torch.no_grad()
def _supernet(golden: Golden) -> dict[str, object]:
    config, images = golden.config, golden.inputs["x"]
    supernet = searchable(_build(golden), space=config["num_channels_to_keep"])
    smaller = supernet.extract(config["sub_network_def"])
    state = smaller.state_dict()
    return {
        "out/logits_full": supernet(images),
        "out/logits_sub_masked": supernet(images, network_def=config["sub_network_def"]),
        "out/logits_sub": smaller(images),
        **{f"out/sub/{name}": state[name] for name in golden.under("out/sub")},
    }


def _masked_layer_norm(golden: Golden) -> dict[str, object]:
    norm = nn.LayerNorm(golden.config["num_channels"], golden.config["eps"])
    norm.load_state_dict(golden.weights)
    x, mask = golden.inputs["x"].requires_grad_(), golden.inputs["mask"].bool()
    y = masked_layer_norm(x, norm, mask)
    y.backward(golden.inputs["grad_out"])
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return {
        "out/y": y,
        "out/y_nomask": masked_layer_norm(x, norm),
        "out/grad_x": x.grad,
        "out/grad_weight": norm.weight.grad,
        "out/grad_bias": norm.bias.grad,
    }


def _channel_drop(golden: Golden) -> dict[str, object]:
    config, found = golden.config, {}
    widths, batch = config["num_channels_to_keep"], config["batch"]
    drop = ChannelDrop(
        widths, max(widths), examples_per_arch=config["example_per_arch"], single_arch=config["single_arch"]
    )
    for epoch in config["epochs"]:
        drop.set_epoch(epoch, config["num_warmup_epochs"])
        torch.manual_seed(config["seed"])
        found[f"out/e{epoch}/num_config"] = torch.tensor(drop.usable)
        found[f"out/e{epoch}/table"] = drop.table(batch)
        found[f"out/e{epoch}/n_kept"] = drop.draw(batch)
    return found


@torch.no_grad()
def _rewiring(golden: Golden) -> dict[str, object]:
    config, x = golden.config, golden.inputs["x"]
    attention = Attention(config["dim"], config["num_heads"], config["head_dim"], drop=0.0)
    attention.load_state_dict(_under(golden, "attn."))
    fc1, fc2 = nn.Linear(config["dim"], config["hidden"]), nn.Linear(config["hidden"], config["dim"])
    for name, layer in (("fc1", fc1), ("fc2", fc2)):
        layer.load_state_dict(_under(golden, f"mlp.{name}."))
    order_heads(attention.qkv, attention.proj, attention.num_heads)
    order_hidden(fc1, fc2)
    return {
        "out/attn_y": attention(x),
        "out/mlp_y": fc2(F.gelu(fc1(x))),
        **{f"out/attn.{name}": tensor for name, tensor in attention.state_dict().items()},
        **{f"out/mlp.fc1.{name}": tensor for name, tensor in fc1.state_dict().items()},
        **{f"out/mlp.fc2.{name}": tensor for name, tensor in fc2.state_dict().items()},
    }


def _under(golden: Golden, start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in golden.weights.items() if name.startswith(start)}


def _pos_embed_resize(golden: Golden) -> dict[str, object]:
    config = golden.config
    with torch.device("meta"):
        model = ViTResNAS(
            network_def=config["network_def"], img_size=config["to_img"], distilled=config["distill_token"]
        )
    prefix, side = model.num_prefix_tokens, config["from_img"] // 14
    assert golden.weights["pos_embed"].shape[1] == side**2 + prefix
    tokens = torch.zeros(1, prefix, golden.weights["pos_embed"].shape[2])
    found = checkpoint_filter_fn({"tokens": tokens, **golden.weights}, model)
    return {f"out/{name}": found[name] for name in golden.weights}


def _evolution_ops(golden: Golden) -> dict[str, object]:
    config, image_size = golden.config, golden.config["img"]
    supernet = read_network_def(config["supernet"], img_size=image_size)
    (shares,) = (shares for name, shares in SHARES.items() if f"_{name}_" in config["space"])
    space = space_of(supernet, shares)
    limit = config["constraint"]

    def cost(network_def: Any) -> int:
        return macs(network_def, image_size, strict_reference=True)

    def described(network_def: Any) -> dict[str, Any]:
        return {"mac": cost(network_def), "flops": flops(network_def, image_size, strict_reference=True)}

    band = Band(cost, config["lower_fraction"] * limit, limit)
    rates = {case["prob"] for case in config["cases"] if case["op"] == "mutate"} or {0.3}
    (rate,) = rates
    genes = {
        op: ResNASGenes(supernet, space, seed=config["seed"] + place, rate=rate)
        for place, op in enumerate(("random", "mutate", "crossover"))
    }

    def replayed(case: Mapping[str, Any]) -> dict[str, Any]:
        own = genes[case["op"]]
        parents = [read_network_def(parent, img_size=image_size) for parent in case.get("parents", ())]
        if case["op"] == "mutate":
            parents = [read_network_def(case["parent"], img_size=image_size)]
        propose = {"random": lambda: own.draw(band), "mutate": own.mutate, "crossover": own.cross}[case["op"]]
        result = into_band(lambda: propose(*parents), band, 1000)
        given = {key: case[key] for key in ("op", "parent", "parents", "prob") if key in case}
        return given | {"result": result} | described(result)

    cases = [replayed(case) for case in config["cases"]]
    rule = genes["random"]
    after = [rule.network_of(genes_of(_tuples(before))) for before, _ in config["update_depth"]]
    named = {name: {"network_def": PUBLISHED[name], **described(PUBLISHED[name])} for name in config["named"]}
    return {
        "out/mac": torch.tensor([case["mac"] for case in cases]),
        "cases": _plain(cases),
        "update_depth": [[before, _plain(own)] for (before, _), own in zip(config["update_depth"], after, strict=True)],
        "named": _plain(named),
    }


def _plain(value: object) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _token_mixup(golden: Golden) -> dict[str, object]:
    config, labels = golden.config, golden.inputs["y"]
    side, classes, smoothing = config["patch_len"], config["num_classes"], config["smoothing"]
    (top, _), (bottom, _), (left, _), (right, _) = config["captured"]["bbox"]
    height, width = bottom - top, right - left
    assert 1 - height * width / side**2 == config["captured"]["lam_cut"]
    pasted, blended = (torch.tensor(order) for order in config["perms"])
    draws = Draws((top, left, height, width), pasted, config["betas"][1][2], blended)
    targets = F.one_hot(labels.long(), classes) * (1 - smoothing) + smoothing / classes
    images, targets, of_tokens = mix(golden.inputs["x"], targets, side, draws)
    return {"out/x": images, "out/targets": targets, "out/patch_targets": of_tokens}


DRAWN = {"seed", "np_seed", "torch_seed", "captured", "betas", "perms"}
HANDLERS = {
    ("vitresnas", "model"): Handler(WORDS, _model),
    ("vitresnas", "supernet_subnet"): Handler({*WORDS, "sub_network_def", "num_channels_to_keep"}, _supernet),
    ("vitresnas", "masked_layer_norm"): Handler({"num_channels", "eps"}, _masked_layer_norm),
    ("vitresnas", "channel_drop"): Handler(
        {
            *("num_channels_to_keep", "batch", "example_per_arch", "single_arch", "num_warmup_epochs", "epochs"),
            "seed",
        },
        _channel_drop,
        {"out/": 0.0},
    ),
    ("vitresnas", "rewiring"): Handler({"dim", "num_heads", "head_dim", "hidden"}, _rewiring),
    ("vitresnas", "pos_embed_resize"): Handler(
        {"network_def", "from_img", "to_img", "distill_token"}, _pos_embed_resize
    ),
    ("vitresnas", "evolution_ops"): Handler(
        {"supernet", "space", "img", "constraint", "lower_fraction", "seed"}, _evolution_ops, {"out/": 0.0}
    ),
    ("vitresnas", "token_mixup"): Handler(
        {"patch_len", "num_classes", "smoothing", "patch_output_type", *DRAWN}, _token_mixup
    ),
}
