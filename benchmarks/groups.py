"""All groups of an HSViT in one batched pass, against a loop over them; and C4A8 against timm's ViT of as many MACs.

    python benchmarks/groups.py

Both sides of the first have the same weights and the same answer to rounding. The loop is what one would write first:
PyTorch's own attention for each group and block.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.costs.counts import count_macs
from anyvit.models import HSViT, create_model
from interleaved import Effort, Sides, ratio, times, write_result

MODELS = ("hsvit_c2a2_32", "hsvit_c3a4_32", "hsvit_c4a8_32")
BATCHES = (1, 32)
TRAINING_BATCH = 32
SAME_MACS = {"img_size": 32, "patch_size": 4, "embed_dim": 256, "depth": 12, "num_heads": 4, "num_classes": 10}


class Looped(nn.Module):
    """The same network, one group after the other."""

    def __init__(self, model: HSViT) -> None:
        super().__init__()
        self.trunk, self.embed, self.norm, self.head = model.trunk, model.embed, model.norm, model.head
        state = model.attention.state_dict()
        self.cls_token, self.pos_embed = (nn.ParameterList(state[name].unbind()) for name in ("cls_token", "pos_embed"))
        depth = len(model.attention.blocks)
        self.groups = nn.ModuleList(
            nn.ModuleList(_block(model, state, group, place) for place in range(depth))
            for group in range(model.num_groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(self.trunk(x).flatten(2)).chunk(len(self.groups), dim=1)
        votes = []
        for own, cls, pos, blocks in zip(tokens, self.cls_token, self.pos_embed, self.groups, strict=True):
            y = torch.cat((cls.expand(len(x), -1, -1), own), dim=1) + pos
            for block in blocks:
                normalized = block["norm"](y)
                y = y + block["attn"](normalized, normalized, normalized, need_weights=False)[0]
            votes.append(y[:, 0])
        return self.head(self.norm(torch.stack(votes, dim=1).mean(dim=1)))


def _block(model: HSViT, state: dict[str, Tensor], group: int, place: int) -> nn.ModuleDict:
    dim, own = model.embed_dim, {name: state[f"blocks.{place}.{name}"][group] for name in _NAMES}
    norm = nn.LayerNorm(dim)
    first = model.attention.blocks[0].attn
    attention = nn.MultiheadAttention(dim, first.num_heads, dropout=first.drop, batch_first=True)
    targets = (norm.weight, norm.bias, attention.in_proj_weight, attention.in_proj_bias)
    targets += (attention.out_proj.weight, attention.out_proj.bias)
    for target, name in zip(targets, _NAMES, strict=True):
        target.data.copy_(own[name])
    return nn.ModuleDict({"norm": norm, "attn": attention})


_NAMES = [f"{part}.{kind}" for part in ("norm", "attn.qkv", "attn.proj") for kind in ("weight", "bias")]


def pictures(batch: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def forward_sides(name: str, batch: int) -> Sides:
    """One pass and the loop, answering."""
    model, images = create_model(name).eval(), pictures(batch)
    loop = Looped(model).eval()

    @torch.inference_mode()
    def answer(network: nn.Module) -> Tensor:
        return network(images)

    torch.testing.assert_close(answer(model), answer(loop), rtol=1e-4, atol=1e-4)
    return {"one pass": lambda: answer(model), "loop": lambda: answer(loop)}


def training_sides(name: str) -> Sides:
    """One pass and the loop, a training step without the optimizer."""
    model, images = create_model(name).train(), pictures(TRAINING_BATCH)
    loop, labels = Looped(model).train(), torch.arange(TRAINING_BATCH) % 10

    def step(network: nn.Module) -> None:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    return {"one pass": lambda: step(model), "loop": lambda: step(loop)}


def vit_sides(batch: int) -> Sides:
    """C4A8 and timm's ViT of as many MACs."""
    images, ours, vit = pictures(batch), create_model("hsvit_c4a8_32").eval(), VisionTransformer(**SAME_MACS).eval()
    assert abs(count_macs(vit, 32) / count_macs(ours, 32) - 1) < 0.01

    @torch.inference_mode()
    def answer(network: nn.Module) -> Tensor:
        return network(images)

    return {"hsvit": lambda: answer(ours), "vit": lambda: answer(vit)}


def main() -> None:
    """Time every case, and keep the result."""
    effort, quick = Effort.asked(__doc__)
    loop, vit = [], []
    for name in MODELS:
        for batch in BATCHES:
            series = times(lambda case=(name, batch): forward_sides(*case), effort)
            loop.append(
                {"model": name, "what": f"forward, batch {batch}", "speed": ratio(series["loop"], series["one pass"])}
            )
        series = times(lambda case=name: training_sides(case), effort)
        what = f"training step, batch {TRAINING_BATCH}"
        loop.append({"model": name, "what": what, "speed": ratio(series["loop"], series["one pass"])})
    for case in loop:
        print(f"{case['model']}, {case['what']}: one pass / loop {case['speed']}", flush=True)
    for batch in BATCHES:
        series = times(lambda case=batch: vit_sides(case), effort)
        vit.append({"batch": batch, "speed": ratio(series["vit"], series["hsvit"])})
        print(f"batch {batch}: C4A8 / ViT of as many MACs {vit[-1]['speed']}", flush=True)
    write_result("groups", {"one_pass_over_loop": loop, "c4a8_over_vit": vit}, quick=quick)


if __name__ == "__main__":
    main()
