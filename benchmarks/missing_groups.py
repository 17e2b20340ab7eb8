"""Groups that are missing or answer wrongly against accuracy, of models trained with and without group dropout.

    python benchmarks/small_data.py --work /tmp/small --models hsvit_c2a2 hsvit_c2a2_group_drop
    python benchmarks/missing_groups.py --work /tmp/small

Takes the weights that the first command leaves. The class tokens of the 5,000 test images are computed once; every set
of groups is then a mean and the head. Of 16 groups, 64 sets of each size are drawn, seed 0.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from anyvit.data import open_data
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.models import HSViT
from anyvit.scaling.spread.vote import accuracy_by_missing
from interleaved import write_result
from small_data import made

ARMS = ("hsvit_c2a2", "hsvit_c2a2_group_drop")
WRONG = (1.0, 10.0, 100.0)
"""How large a wrong token is, as a multiple of the class tokens' own spread."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    test, found = open_data(asked.data).splits["test"], {}
    for name in ARMS:
        model = made(name, asked.seed).eval()
        assert isinstance(model, HSViT)
        model.load_state_dict(load_file(asked.work / f"{name}-{asked.seed}" / "model.safetensors"))
        votes, labels = class_tokens(model, evaluation_batches(test, Preprocessing(32)))
        found[name] = {"missing": missing(model, votes, labels), "wrong": wrong(model, votes, labels)}
        print(name, *found[name]["missing"], *found[name]["wrong"], sep="\n  ", flush=True)
    write_result("missing_groups", {"data": "CIFAR-10, 5,000 test images", "seed": asked.seed, "models": found})


@torch.inference_mode()
def class_tokens(model: HSViT, batches) -> tuple[Tensor, Tensor]:
    """Every group's class token of every image, (N, G, D), and the labels."""
    votes, labels = zip(*((model.forward_features(images), truth) for images, truth in batches), strict=True)
    return torch.cat(votes), torch.cat(labels)


@torch.inference_mode()
def accuracy(model: HSViT, votes: Tensor, labels: Tensor) -> float:
    return (model.forward_head(votes).argmax(1) == labels).float().mean().item()


def missing(model: HSViT, votes: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Accuracy by number of groups that do not answer."""
    table = accuracy_by_missing(model.num_groups, lambda kept: accuracy(model, votes[:, list(kept)], labels))
    return [asdict(row) for row in table]


def wrong(model: HSViT, votes: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Accuracy where one group answers with finite nonsense: noise of the tokens' own spread, and multiples of it."""
    noise = torch.randn(votes[:, 0].shape, generator=torch.Generator().manual_seed(0)) * votes.std()
    rows = []
    for scale in WRONG:
        found = []
        for group in range(model.num_groups):
            disturbed = votes.clone()
            disturbed[:, group] = scale * noise
            found.append(accuracy(model, disturbed, labels))
        rows.append({"scale": scale, "mean": sum(found) / len(found), "worst": min(found)})
    return rows


if __name__ == "__main__":
    main()
