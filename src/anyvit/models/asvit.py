"""As-ViT: four stages of window attention whose shape a search found without training.

Paper:    Chen, Huang, Du, Song, Wang, Zhou, ICLR 2022, arXiv 2202.11921
Weights:  VITA-Group/AsViT's layout, mapped by `checkpoint_filter_fn`; none are published
Differs:  grids that do not divide are padded and masked where asked for; the tokens may be coarser for a while in
          training, with the same weights; no absolute position table, which the reference has switched off
Letters:  B images, H and W grid, C channels, N tokens of a window
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyvit.errors import ModelError, SettingError, unknown
from anyvit.models.asvit_topology import StageShape, Topology

TOKEN_FACTORS = (1, 2, 4)


class PatchEmbed(nn.Module):
    """A token for every `stride` x `stride` pixels, seen through a kernel that may be larger."""

    def __init__(self, in_chans: int, embed_dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel, stride)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, factor: int) -> Tensor:
        """Images (B, in_chans, S, S) to tokens (B, H, W, C), `factor` times coarser: the kernel is spread as wide."""
        size, stride, kernel = x.shape[-1], self.stride * factor, self.proj.kernel_size[0]
        grid = -(-size // stride)
        total = max(0, (grid - 1) * stride + factor * (kernel - 1) + 1 - size)
        before, after = total // 2, total - total // 2
        x = F.pad(x, (before, after, before, after))
        x = F.conv2d(x, self.proj.weight, self.proj.bias, stride=stride, dilation=factor)
        return self.norm(x.permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Self-attention within square windows that do not overlap; heads may not fill all channels."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        inner = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner)
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor, split: int) -> Tensor:
        """Tokens (B, H, H, C) to the same, each window a `split`-th of a side; what fills up a window is no key."""
        grid = x.shape[1]
        window = max(1, grid // split)
        missing = -grid % window
        if not missing:
            return _joined(self.attend(_windows(x, window)), grid)
        fill = (0, 0, 0, missing, 0, missing)
        real = F.pad(x.new_ones((1, grid, grid, 1)), fill).bool()
        keys = _windows(real, window).squeeze(-1).repeat(len(x), 1)[:, None, None]
        x = self.attend(_windows(F.pad(x, fill), window), keys)
        return _joined(x, grid + missing)[:, :grid, :grid]

    def attend(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) among each other; `keys` (B, 1, 1, N) is true for those that may be looked at."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.proj(x.transpose(1, 2).flatten(2))


def _windows(x: Tensor, window: int) -> Tensor:
    """Tokens (B, H, H, C) to (B * windows, N, C), row by row."""
    B, H, _, C = x.shape
    x = x.reshape(B, H // window, window, H // window, window, C)
    return x.transpose(2, 3).reshape(-1, window * window, C)


def _joined(x: Tensor, grid: int) -> Tensor:
    """The way back."""
    N, C = x.shape[1:]
    window = math.isqrt(N)
    x = x.reshape(-1, grid // window, grid // window, window, window, C)
    return x.transpose(2, 3).reshape(-1, grid, grid, C)


class Block(nn.Module):
    """Window attention and an MLP, each behind a norm and around a residual connection."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads)
        self.drop_path1: nn.Module = nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim)
        self.drop_path2: nn.Module = nn.Identity()

    def forward(self, x: Tensor, split: int) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), split))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Merge(nn.Module):
    """Half the grid: what a kernel covers is normalized and projected."""

    def __init__(self, dim: int, dim_out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = nn.LayerNorm(kernel * kernel * dim)
        self.reduction = nn.Linear(kernel * kernel * dim, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        odd = x.shape[1] % 2
        before, after = (self.kernel - 2) // 2, (self.kernel - 1) // 2 + odd
        x = F.pad(x.permute(0, 3, 1, 2), (before, after, before, after))
        grid = (x.shape[-1] - self.kernel) // 2 + 1
        x = F.unfold(x, self.kernel, stride=2).transpose(1, 2)
        return self.reduction(self.norm(x)).unflatten(1, (grid, grid))


class Stage(nn.Module):
    """Blocks of one width, and the merge behind them."""

    def __init__(self, shape: StageShape, dim: int, num_heads: int, downsample: nn.Module) -> None:
        super().__init__()
        self.split = shape.split
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList([Block(dim, num_heads, int(dim * shape.expansion)) for _ in range(shape.depth)])
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Tokens behind the blocks, not yet merged."""
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, self.split, use_reentrant=False)
            else:
                x = block(x, self.split)
        return x


class AsViT(nn.Module):
    """A pyramid of window attention without position tables and class token, in timm's contract.

    A window split is relative to the grid, so that the windows, and what their attention costs, grow with the image.

    Args:
        topology: The shape, or its string.
        img_size: S, of square images.
        in_chans: Channels of an image.
        num_classes: 0: no classifier.
        stride: Pixels a side of a token of the first stage.
        padded: Take any image size: grids are filled up with zeros where they are not even or a window split does not
            divide them, and no token looks at those.
        drop_path_rate: The chance of the last block to be skipped in training, rising from 0 at the first.

    Raises:
        ModelError: The topology is none, or does not go with the image size.
    """

    num_prefix_tokens = 0

    def __init__(
        self,
        *,
        topology: Topology | str,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        stride: int = 4,
        padded: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.topology = Topology.parse(topology) if isinstance(topology, str) else topology
        if not padded:
            self.topology.grids(img_size, stride)
        self.img_size, self.in_chans, self.token_factor = img_size, in_chans, 1
        stages, widths = self.topology.stages, self.topology.widths
        self.num_features = self.embed_dim = self.head_hidden_size = widths[-1]
        self.patch_embed = PatchEmbed(in_chans, widths[0], stages[0].kernel, stride)
        merges = [Merge(widths[place - 1], widths[place], stages[place].kernel) for place in (1, 2, 3)]
        parts = zip(stages, widths, self.topology.heads_by_stage, [*merges, nn.Identity()], strict=True)
        self.layers = nn.ModuleList([Stage(*part) for part in parts])
        self.feature_info = [
            {"num_chs": width, "reduction": stride * 2**place, "module": f"layers.{place}"}
            for place, width in enumerate(widths)
        ]
        self.norm: nn.Module = nn.LayerNorm(self.num_features)
        self.pre_logits: nn.Module = nn.Linear(self.num_features, self.num_features)
        self.apply(_init)
        self.reset_classifier(num_classes)
        self._set_drop_path(drop_path_rate)

    def _stages(self) -> list[Any]:
        """To a type checker their parts are any module or tensor, so they go unchecked."""
        return list(self.layers)

    def _set_drop_path(self, rate: float) -> None:
        blocks = [block for layer in self._stages() for block in layer.blocks]
        for place, block in enumerate(blocks):
            if share := rate * place / max(1, len(blocks) - 1):
                block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)

    def set_token_factor(self, factor: int) -> None:
        """Let tokens be `factor` times as wide and high from now on; no weight changes. 1 is the plain network.

        Raises:
            SettingError: Another factor than 1, 2 or 4.
        """
        if factor not in TOKEN_FACTORS:
            raise SettingError(f"a token factor is one of {', '.join(map(str, TOKEN_FACTORS))}: got {factor}")
        self.token_factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, S, S).

        Raises:
            SettingError: Images of another size, or with another number of channels.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) of the last stage, normalized."""
        return self.norm(self.tokens(x))

    def tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) of the last stage, not yet normalized."""
        x = self.embed(x)
        for layer in self._stages():
            x = layer.downsample(layer(x))
        return x

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) before the first stage."""
        if tuple(x.shape[1:]) != (self.in_chans, self.img_size, self.img_size):
            raise SettingError(
                f"images are {' x '.join(map(str, x.shape[1:]))} and the model takes {self.in_chans} channels of "
                f"{self.img_size} x {self.img_size} pixels: convert them, or build it with in_chans and img_size"
            )
        return self.patch_embed(x, self.token_factor)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean over tokens, one layer with tanh, and the classifier."""
        x = torch.tanh(self.pre_logits(x.mean(dim=(1, 2))))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The tokens behind the blocks of the stages, and, unless `intermediates_only`, what `forward_features` gives.

        Args:
            x: Images.
            indices: Which stages; a number: so many last ones; None: all.
            norm: Normalize those of the last stage.
            stop_early: Leave out the stages behind the last of `indices`.
            output_fmt: NCHW or NHWC.
            intermediates_only: Give the list alone.

        Raises:
            SettingError: Another format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise SettingError(f"output_fmt is NCHW or NHWC: got {output_fmt!r}")
        wanted, last = feature_take_indices(len(self.layers), indices)  # type: ignore[arg-type]
        x, maps = self.embed(x), []
        for place, layer in enumerate(self._stages()):
            if stop_early and place > last:
                break
            x = layer(x)
            if place in wanted:
                taken = self.norm(x) if norm and place == len(self.layers) - 1 else x
                maps.append(taken.permute(0, 3, 1, 2) if output_fmt == "NCHW" else taken)
            x = layer.downsample(x)
        return maps if intermediates_only else (self.norm(x), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, *, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates` of these stages does not need."""
        wanted, last = feature_take_indices(len(self.layers), indices)  # type: ignore[arg-type]
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.pre_logits = nn.Identity()
            self.reset_classifier(0)
        return wanted

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier. The mean over tokens is the only pooling there is."""
        if global_pool not in (None, "avg"):
            raise SettingError(f"As-ViT averages its tokens, global_pool 'avg': got {global_pool!r}")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _init(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for layer in self._stages():
            layer.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """None beyond norms and biases, which timm leaves without anyway."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        merges = [] if coarse else [(r"^layers\.(\d+)\.downsample", (99999,))]  # as the block before it
        blocks = (r"^layers\.(\d+)" if coarse else r"^layers\.(\d+)\.blocks\.(\d+)", None)
        return {"stem": r"^patch_embed", "blocks": [*merges, blocks, (r"^norm|^pre_logits", (99999,))]}


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@dataclass(frozen=True, slots=True)
class Variant:
    """A topology with a name, at 224 px."""

    name: str
    summary: str
    topology: str


def _variant(size: str, topology: str) -> Variant:
    shape = Topology.parse(topology)
    summary = f"224 px, {sum(shape.depths)} blocks in four stages, {shape.widths[0]} to {shape.widths[-1]} channels"
    return Variant(f"asvit_{size}_224", summary, topology)


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        _variant("seed", "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"),
        _variant("small", "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88"),
        _variant("base", "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116"),
        _variant("large", "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"),
        Variant("asvit", "the topology and image_size it is given", "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"),
    )
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 224, 224),
            "num_classes": 1000,
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in VARIANTS
    }
)


def _register(variant: Variant) -> None:
    def build(pretrained: bool = False, image_size: int = 224, **arguments: Any) -> AsViT:
        """No weights are published."""
        if pretrained:
            raise ModelError(f"there are no pretrained weights of {variant.name}: train it from scratch")
        size = arguments.setdefault("img_size", image_size)
        asked = arguments.pop("pretrained_cfg_overlay", None) or {}
        whole = {"crop_pct": 1.0} if size <= 96 else {}  # small images have no margin to lose
        return build_model_with_cfg(
            AsViT,
            variant.name,
            False,
            pretrained_filter_fn=checkpoint_filter_fn,
            pretrained_cfg_overlay={"input_size": (3, size, size), **whole, **asked},
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **{"topology": variant.topology, **arguments},
        )

    build.__name__ = variant.name
    register_model(build)


for _each in VARIANTS.values():
    _register(_each)


_RULES = (
    (r"\.mlps\.0\.0\.", ".norm2."),
    (r"\.mlps\.0\.1\.", ".mlp."),
    (r"^head\.0\.", "pre_logits."),
    (r"^head\.2\.", "head."),
)
"""From the reference's names to ours."""


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The reference's weights under our names. Our own weights are left as they are."""
    found = {}
    for name, tensor in state.items():
        for pattern, ours in _RULES:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


_WORDS = ("arch", "img_size", "stride", "num_classes", "hidden", "depths")


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> AsViT:
    """The model that weights in the reference's layout belong to.

    Args:
        weights: Of a whole network.
        config: The reference's own words: `arch`, the topology's string, which shapes do not tell; `img_size`,
            `stride`, and `hidden` and `depths` where the string leaves them out. The classes are read off the weights.

    Raises:
        SettingError: A word that is missing or unknown.
        ModelError: Weights that are not those of the model described.
    """
    words = dict(config or {})
    for word in words:
        if word not in _WORDS:
            raise SettingError(f"config: {unknown('word', word, _WORDS)}")
    if "arch" not in words:
        raise SettingError("the weights' shapes do not tell arch, the string of the topology: give it in config")
    topology = Topology.parse(words.pop("arch"))
    topology = topology.sized(words.pop("depths", topology.depths), words.pop("hidden", topology.hidden))
    state = checkpoint_filter_fn(weights, nn.Identity())
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    model = AsViT(topology=topology, **{"num_classes": classes, **words})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"these weights are not those of the model described: {error}") from None
    return model
