"""Groups missing from the vote against accuracy, of models trained with and without group dropout.

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
        found[name] = missing(model, votes, labels)
        print(name, *found[name], sep="\n  ", flush=True)
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


if __name__ == "__main__":
    main()
