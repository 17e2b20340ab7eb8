"""What one board of four does to accuracy when it is missing, and when its class tokens are wrong but finite.

    python benchmarks/wrong_tokens.py

A checksum does not tell a wrong token from a right one. `hsvit_c2a2_8` learns digits for 300 steps, with and without
group dropout; then one group of four, each in turn, is left out, shuffled, turned around, or blown up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyvit.data import DataSet, open_data
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.models import create_model
from anyvit.models.hsvit import HSViT
from interleaved import write_result

RULE, STEPS, BATCH = Preprocessing(8), 300, 64
Wrong = Callable[[Tensor], Tensor | None]

WAYS: Mapping[str, Wrong] = {
    "missing": lambda token: None,
    "another image's": lambda token: token.roll(1, dims=0),
    "turned around": lambda token: -token,
    "ten times as large": lambda token: 10 * token,
    "turned around, a hundred times as large": lambda token: -100 * token,
    "constant, a million times as large": lambda token: 1e6 * token[:1].expand_as(token),
}


def pixels_of(data: DataSet, split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, preprocessed, and their labels."""
    images, labels = zip(*evaluation_batches(data.splits[split], RULE, 256), strict=True)
    return torch.cat(images), torch.cat(labels)


def learn(images: Tensor, labels: Tensor, group_drop_rate: float, steps: int) -> HSViT:
    """A model after so many steps."""
    torch.manual_seed(0)
    model = create_model("hsvit_c2a2_8", group_drop_rate=group_drop_rate).train()
    assert isinstance(model, HSViT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def accuracies(model: HSViT, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """With all groups right, and with each in turn wrong in each way: the mean and the worst."""
    votes = model.forward_features(images)

    def accuracy(tokens: list[Tensor]) -> float:
        return (model.forward_head(torch.stack(tokens, dim=1)).argmax(1) == labels).double().mean().item()

    found: dict[str, Any] = {"all right": accuracy(list(votes.unbind(1)))}
    for name, wrong in WAYS.items():
        each = []
        for group in range(votes.shape[1]):
            tokens = [wrong(token) if place == group else token for place, token in enumerate(votes.unbind(1))]
            each.append(accuracy([token for token in tokens if token is not None]))
        found[name] = {"mean": mean(each), "worst": min(each)}
    return found


def main() -> None:
    """Both models, and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data, result = open_data("digits"), {}
    for rate in (0.0, 0.3):
        model = learn(*pixels_of(data, "train"), rate, 5 if quick else STEPS)
        result[f"group_drop_rate {rate}"] = found = accuracies(model, *pixels_of(data, "test"))
        print(f"group_drop_rate {rate}: {found}", flush=True)
    write_result("wrong_tokens", {"model": "hsvit_c2a2_8", "steps": STEPS, "seed": 0, **result}, quick=quick)


if __name__ == "__main__":
    main()
