"""RePaViT: the trained form, one training forward, and what it merges into, for plain ViT, Swin and PoolFormer."""

from collections.abc import Callable

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from anyvit.deploy.reference import load_reference
from anyvit.models.layers.channel_idle import merged
from anyvit.models.repavit import checkpoint_filter_fn
from tests.golden.vectors import Golden, Handler

WORDS = {
    *("img_size", "patch_size", "embed_dim", "depth", "depths", "num_heads", "mlp_ratio", "num_classes", "window_size"),
    *("drop_path_rate", "feature_norm", "channel_idle", "idle_ratio", "heuristic", "pre_norm", "fc_norm", "qkv_bias"),
    *("layers", "embed_dims", "mlp_ratios", "downsamples", "pool_size", "use_layer_scale"),
}
UNTOLD = {"idle_ratio", "heuristic", "num_heads"}  # by the shapes of the weights
CONFIG = WORDS | {"kind", "dtype", "image", "seed"}  # what else describes the reference's random weights and images
Stages = Callable[[nn.Module, Tensor], dict[str, Tensor]]


def _handler(stages: Stages) -> Handler:
    return Handler(CONFIG, lambda golden: _run(golden, stages))


def _run(golden: Golden, stages: Stages) -> dict[str, object]:
    images = golden.inputs["x"]
    model = _build(golden, golden.weights, WORDS)
    smaller = reparameterize_model(
        model
    )  # merges every block, as the reference does; ours leaves those that would grow
    with torch.no_grad():
        found = {f"out/unmerged/{name}": value for name, value in stages(model, images).items()}
        found |= {name: value for name, value in _merged_state(golden, smaller).items()}
        answers = [merged(model)(images), smaller(images), _build(golden, golden.weights, UNTOLD)(images)]
        if mlps := golden.under("out/merged_state"):
            others = {name: tensor for name, tensor in golden.weights.items() if ".mlp." not in name}
            answers.append(_build(golden, others | mlps, {"num_heads"})(images))
        found |= _train_step(golden, model)
    for answer in answers:
        _assert_close("logits of another form", answer, golden.tensors["out/unmerged/logits"])
    for name, value in found.items():
        _assert_close(name, value, golden.tensors[name])
    counts = {"params_train": model, "params_merged": smaller}
    return found | {name: sum(p.numel() for p in counted.parameters()) for name, counted in counts.items()}


def _build(golden: Golden, weights: dict[str, Tensor], words: set[str]) -> nn.Module:
    """The model in the precision of the file; `load_reference` gives float32."""
    model = load_reference("repavit", weights, {key: golden.config[key] for key in words & golden.config.keys()})
    model.to(golden.inputs["x"].dtype)
    model.load_state_dict(checkpoint_filter_fn(weights, model))
    return model


def _merged_state(golden: Golden, smaller: nn.Module) -> dict[str, Tensor]:
    """Under the reference's names; its first matrix has the residual's identity in it."""
    found = {}
    for name in golden.under("out/merged_state"):
        path, layer, leaf = name.rsplit(".", 2)
        mlp = smaller.get_submodule(path)
        tensor = getattr({"fc1": mlp.linear, "fc2": mlp.fc1, "fc3": mlp.fc2}[layer], leaf)
        is_linear = (layer, leaf) == ("fc1", "weight")
        found[f"out/merged_state/{name}"] = tensor + torch.eye(len(tensor)) if is_linear else tensor
    return found


def _train_step(golden: Golden, model: nn.Module) -> dict[str, Tensor]:
    logits = model.train()(golden.inputs["x"])
    ours = {
        name: next(iter(checkpoint_filter_fn({name: t}, model))) for name, t in golden.under("out/train/after").items()
    }
    return {"out/train/logits": logits} | {f"out/train/after/{n}": model.get_buffer(ours[n]) for n in ours}


def _assert_close(name: str, found: Tensor, expected: Tensor) -> None:
    limit = 1e-10 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit, msg=lambda words: f"{name}: {words}")


def _vit(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    found = {"norm_pre": tokens}
    for index, block in enumerate(model.blocks):
        found[f"block{index}"] = tokens = block(tokens)
    return found | {"logits": model(images)}


def _swin(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """timm halves the map at the beginning of a stage, the reference at the end of the one before."""
    tokens = model.patch_embed(images)
    found = {"patch_embed": tokens}
    halvings = [stage.downsample for stage in model.layers[1:]]
    for index, (stage, halving) in enumerate(zip(model.layers, [*halvings, nn.Identity()], strict=True)):
        found[f"layer{index}"] = tokens = halving(stage.blocks(tokens))
    return {name: value.flatten(1, 2) for name, value in found.items()} | {"logits": model(images)}


def _poolformer(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    maps, parts = model.stem(images), []
    for stage in model.stages:
        for part in (stage.downsample, stage.blocks):
            maps = part(maps)
            parts.append(maps)
    return {f"network{index}": value for index, value in enumerate(parts[1:])} | {"logits": model(images)}


HANDLERS = {
    ("repavit", "vit"): _handler(_vit),
    ("repavit", "swin"): _handler(_swin),
    ("repavit", "poolformer"): _handler(_poolformer),
}
