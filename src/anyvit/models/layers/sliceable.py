"""Cut a plain ViT to a prefix of its channels, heads and MLP units: as views, as a copy, or anew at each call.

One policy serves every nested ViT: HydraViT keeps the first k heads and the same share of all else; MatFormer keeps all
but some MLP units.

Letters: E embed_dim, A = heads * head_dim (equal to E in a full model), M MLP units; small letters are what stays.

| parameter                                                     | shape   | what stays                          |
| ------------------------------------------------------------- | ------- | ----------------------------------- |
| patch_embed.proj, every norm over channels, layer scale       | (E, …)  | [:e]                                |
| class, register and distillation token, position table        | (1, N, E) | [..., :e]                         |
| attn.qkv                                                      | (3A, E) | [:a, :e] of each of the three parts |
| attn.proj                                                     | (E, A)  | [:e, :a]                            |
| mlp.fc1, mlp.fc2                                              | (M, E), (E, M) | [:m, :e], [:e, :m]           |
| head                                                          | (K, E)  | [:, :e]                             |
| query and key norms (over one head), biases of the head       |         | all                                 |
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from timm.layers import LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.models.contract import blocks_of, is_plain_vit, why_not_plain

TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")

Amount = TypeVar("Amount")
"""What stays of a dimension: the length of a prefix here, positions in `indexed.py`."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What one block keeps: its first `embed` channels, `heads` heads and `hidden` MLP units."""

    embed: int
    heads: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Stays(Generic[Amount]):
    """What stays of the channels, of the channels inside the attention and of the MLP units of one block."""

    embed: Amount
    attend: Amount
    hidden: Amount


@dataclass(frozen=True, slots=True)
class Cut(Generic[Amount]):
    """What stays of a tensor, by dimension; None keeps a dimension, and so do those not named.

    With `groups` the first dimension is that many equal parts, one after the other, each cut alike; they stay apart
    as a dimension of their own, which `stays` counts too.
    """

    stays: tuple[Amount | None, ...] = ()
    groups: int = 1

    def apart(self, tensor: Tensor) -> Tensor:
        """The tensor with its groups as a dimension of their own."""
        return tensor.unflatten(0, (self.groups, -1)) if self.groups > 1 else tensor


def view(cut: Cut[int], tensor: Tensor) -> Tensor:
    """The leading part of `tensor` that stays."""
    return cut.apart(tensor)[tuple(slice(length) for length in cut.stays)]


class StackedLinear(nn.Module):
    """A linear layer of G stacked parts (query, key, value), for weights that no single matrix can be a view of.

    Args:
        weight: (G, out, in), any strides; stacked at each call, which costs less than G products.
        bias: (G, out), or None.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.in_features = weight.shape[2]
        self.out_features = weight.shape[0] * weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(self.out_features, self.in_features), self.bias
        return F.linear(x, weight, None if bias is None else bias.reshape(self.out_features))

    def as_linear(self) -> nn.Linear:
        """An ordinary layer that answers alike: over the same weights where they lie side by side, else a copy."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.detach().flatten(0, 1), requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().flatten(), requires_grad=self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def why_not_sliceable(model: nn.Module) -> str | None:
    """The reason why `model` has no prefix that is a ViT of its own, or None."""
    if not is_plain_vit(model):
        return why_not_plain(model)
    if type(model.patch_embed) is not PatchEmbed:
        return f"patch_embed is a {type(model.patch_embed).__name__}, not one convolution"
    if model.attn_pool is not None:
        return f"it pools with {type(model.attn_pool).__name__}, which has heads of its own"
    for index, block in enumerate(blocks_of(model)):
        if type(block.mlp) is not Mlp:
            return f"blocks.{index}.mlp is a {type(block.mlp).__name__}, not two linear layers"
    shapes = {(block.attn.num_heads, block.attn.head_dim) for block in blocks_of(model)}
    if len(shapes) > 1:
        return f"its blocks differ in (heads, head_dim): {sorted(shapes)}"
    return _why_not_parts(model)


def _why_not_parts(model: VisionTransformer) -> str | None:
    parts = {part.path for part in _parts(model, [Stays(0, 0, 0)] * len(model.blocks))}
    untouched = {f"blocks.{index}.attn.{name}" for index in range(len(model.blocks)) for name in ("q_norm", "k_norm")}
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False) if path or name not in TOKENS]
        known = type(module) in (nn.Linear, nn.Conv2d, LayerScale) or hasattr(module, "normalized_shape")
        if names and path not in untouched and not (path in parts and known):
            where = f"{path} is a {type(module).__name__}" if path else f"the model has a parameter {names[0]}"
            return f"{where}, and what of it belongs to which head is not known"
    return None


@dataclass(frozen=True, slots=True)
class _Part(Generic[Amount]):
    """A module that is cut, and what stays of its outputs (rows) and inputs (columns); None keeps all."""

    path: str
    rows: Amount | None
    columns: Amount | None = None
    groups: int = 1


def _parts(model: VisionTransformer, blocks: Sequence[Stays[Amount]]) -> Iterator[_Part[Amount]]:
    embed = blocks[0].embed
    yield _Part("patch_embed.proj", embed)
    for path in ("patch_embed.norm", "norm_pre", "norm", "fc_norm"):
        yield _Part(path, embed)
    for path in ("head", "head_dist"):
        yield _Part(path, None, embed)
    for index, block in enumerate(blocks):
        at = f"blocks.{index}."
        yield _Part(at + "attn.qkv", block.attend, embed, groups=3)
        yield _Part(at + "attn.gate", block.attend, embed)
        yield _Part(at + "attn.norm", block.attend)
        yield _Part(at + "attn.proj", embed, block.attend)
        yield _Part(at + "mlp.fc1", block.hidden, embed)
        yield _Part(at + "mlp.norm", block.hidden)
        yield _Part(at + "mlp.fc2", embed, block.hidden)
        yield from (_Part(at + path, embed) for path in ("norm1", "norm2", "ls1", "ls2"))


def cuts(model: VisionTransformer, blocks: Sequence[Stays[Amount]]) -> dict[str, Cut[Amount]]:
    """The cut of every parameter, by its name.

    Args:
        model: Sliceable in the sense of `why_not_sliceable`.
        blocks: What stays, one for each block. All have the same `embed`.
    """
    embed = blocks[0].embed
    parts = {part.path: part for part in _parts(model, blocks)}
    found: dict[str, Cut[Amount]] = {}
    for name, parameter in model.named_parameters():
        part = parts.get(name.rpartition(".")[0])
        if name in TOKENS:
            found[name] = Cut((None, None, embed))
        elif part is None:
            found[name] = Cut()
        elif part.groups > 1:
            found[name] = Cut((None, part.rows, part.columns)[: parameter.ndim + 1], part.groups)
        else:
            found[name] = Cut((part.rows, part.columns)[: parameter.ndim])
    return found


def cut_to_views(model: VisionTransformer, prefixes: Sequence[Prefix]) -> dict[str, Cut[int]]:
    """Cut `model` in place: its parameters become views of what they were. Give it a `share` of the full model.

    Returns:
        The cut of every parameter, by its name.
    """
    blocks = [
        Stays(prefix.embed, prefix.heads * block.attn.head_dim, prefix.hidden)
        for block, prefix in zip(blocks_of(model), prefixes, strict=True)
    ]
    found = cuts(model, blocks)
    replace_parameters(model, lambda name, full: view(found[name], full))
    note_sizes(model, blocks)
    for block in blocks_of(model):
        block.attn.qkv = StackedLinear(block.attn.qkv.weight, block.attn.qkv.bias).train(block.training)
    return found


def replace_parameters(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> None:
    """Put what `change` makes of the name and value of each parameter in its place."""
    for name, full in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        changed = change(name, full.detach())
        setattr(model.get_submodule(path), leaf, nn.Parameter(changed, requires_grad=full.requires_grad))


def note_sizes(model: VisionTransformer, blocks: Sequence[Stays[int]]) -> None:
    """What modules say about their sizes follows their parameters."""
    embed = blocks[0].embed
    model.embed_dim = model.num_features = model.head_hidden_size = embed
    for info in model.feature_info:
        info["num_chs"] = embed
    modules = dict(model.named_modules())
    for part in _parts(model, blocks):
        module = modules.get(part.path)
        if module is None:
            continue
        if isinstance(module, nn.Linear):
            module.out_features = part.rows or module.out_features
            module.in_features = part.columns or module.in_features
        elif isinstance(module, nn.Conv2d):
            module.out_channels = part.rows or module.out_channels
        elif hasattr(module, "normalized_shape"):
            module.normalized_shape = (part.rows,)
    for block, stays in zip(blocks_of(model), blocks, strict=True):
        block.attn.num_heads = stays.attend // block.attn.head_dim
        block.attn.attn_dim = stays.attend


def extracted(model: VisionTransformer) -> VisionTransformer:
    """A copy of a subnetwork in memory of its own, made of plain timm layers: one that can be saved."""
    model = copy.deepcopy(model)
    for block in blocks_of(model):
        if isinstance(block.attn.qkv, StackedLinear):
            block.attn.qkv = block.attn.qkv.as_linear()
    return model


class Differentiable:
    """A narrow model whose parameters are cut anew from the full ones at each call, so that gradients reach them.

    What lies outside the cut gets a gradient too: zeros.

    Args:
        source: The full model.
        model: A subnetwork of it as views. This object takes it over.
        found: The cut of every parameter of `model`, by its name.
        origin: From the name of a parameter in `model` to that in `source`.
    """

    def __init__(
        self,
        source: VisionTransformer,
        model: VisionTransformer,
        found: dict[str, Cut[int]],
        origin: Callable[[str], str],
    ) -> None:
        self.model = model
        self._source = source
        self._steps = []
        for name, cut in found.items():
            path, _, leaf = name.rpartition(".")
            origin_path, _, origin_leaf = origin(name).rpartition(".")
            owner = model.get_submodule(path)
            delattr(owner, leaf)  # a tensor that is no leaf can only be a plain attribute
            self._steps.append((owner, leaf, source.get_submodule(origin_path), origin_leaf, cut))

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        for owner, leaf, origin, origin_leaf, cut in self._steps:
            setattr(owner, leaf, view(cut, getattr(origin, origin_leaf)))
        if self.model.training != self._source.training:
            self.model.train(self._source.training)
        self.model.grad_checkpointing = self._source.grad_checkpointing
        return self.model(*args, **kwargs)
