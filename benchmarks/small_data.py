"""Does HSViT learn more from few images? CIFAR-10 with 500 images a class, from scratch, one recipe for all models.

    python benchmarks/small_data.py --work /tmp/small                              # every model, seed 0
    python benchmarks/small_data.py --work /tmp/small --models hsvit_c2a2 --seed 1

Accuracy is that on the 5,000 test images after 20 epochs. Each model's result is written as soon as it is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from anyvit.costs.counts import count_macs, count_params
from anyvit.costs.device import this_device
from anyvit.data import DataSet, Split, open_data
from anyvit.data.images import Selection
from anyvit.data.preprocessing import Preprocessing
from anyvit.models import create_model
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.scoring import score
from anyvit.scaling.workshop import Workshop
from anyvit.training.objectives import Classification
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train
from training_runs import tell

IMAGES_A_CLASS, EPOCHS = 500, 20
RECIPE = "scratch-small"
RESULTS = Path(__file__).parent / "results" / "small_data.json"

PLAIN_VIT = {"img_size": 32, "patch_size": 4}
MODELS = {
    "hsvit_c2a2": ("hsvit_c2a2_32", {}),
    "vit_0.8M": ("vit_tiny_patch16_224", {**PLAIN_VIT, "embed_dim": 128, "depth": 4, "num_heads": 4}),
    "resnet18": ("resnet18", {}),
    "resnet18_small_images": ("resnet18", {}),
    "hsvit_c3a4": ("hsvit_c3a4_32", {}),
    "vit_2.2M": ("vit_tiny_patch16_224", {**PLAIN_VIT, "embed_dim": 192, "depth": 5, "num_heads": 6}),
    "hsvit_c2a2_group_drop": ("hsvit_c2a2_32", {"group_drop_rate": 0.25}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, required=True, help="where trainings keep their state; a killed one resumes"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dataset = few(open_data(asked.data), IMAGES_A_CLASS)
    for name in asked.models:
        model = made(name, asked.seed)
        found = trained(model, dataset, asked.work / f"{name}-{asked.seed}", asked.seed)
        write(name, asked.seed, {"params": count_params(model), "macs": count_macs(model, 32), **found})


def few(dataset: DataSet, count: int) -> DataSet:
    """The data set with the first `count` training images of each class."""
    split = dataset.splits["train"]
    chosen = np.sort(np.concatenate([np.flatnonzero(split.labels == k)[:count] for k in range(len(dataset.classes))]))
    hashes = np.array([split.images.content_hash(int(i)) for i in chosen], dtype=np.uint64)
    return dataclasses.replace(
        dataset,
        splits={**dataset.splits, "train": Split(Selection(split.images, chosen, hashes), split.labels[chosen])},
    )


def made(name: str, seed: int) -> nn.Module:
    """A model with fresh weights."""
    torch.manual_seed(seed)
    registered, arguments = MODELS[name]
    model = create_model(registered, num_classes=10, **arguments)
    if name == "resnet18_small_images":  # as is usual for 32 px: the stem keeps the size
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def trained(model: nn.Module, dataset: DataSet, folder: Path, seed: int) -> dict[str, float]:
    """Train `model`, keep its weights, and say what it is worth."""
    recipe = dataclasses.replace(RECIPES[RECIPE], precision="bfloat16", threads=1)
    preprocessing = Preprocessing(32)
    begun = time.process_time()
    training = train(
        model,
        dataset,
        objective=Classification(),
        recipe=recipe,
        preprocessing=preprocessing,
        folder=folder,
        epochs=EPOCHS,
        seed=seed,
        progress=tell(folder.name),
    )
    seconds = time.process_time() - begun
    save_file(training.model.state_dict(), folder / "model.safetensors")
    plain = [Result(Candidate((), Step("torch")))]
    (result,) = score(
        Workshop(training.model, Conditions(preprocessing.image_size).example()),
        plain,
        dataset.splits["test"],
        preprocessing,
        dataset.classes,
    )
    return {"test_accuracy": result.accuracy or 0.0, "steps": training.steps, "cpu_seconds": seconds}


def write(name: str, seed: int, found: dict[str, float]) -> None:
    """Add a model's result to the file."""
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record |= {
        "data": f"CIFAR-10: {IMAGES_A_CLASS} training images a class, 5,000 test images",
        "recipe": f"{RECIPE}, {EPOCHS} epochs, bfloat16",
        "device": str(this_device()),
    }
    record.setdefault("models", {}).setdefault(name, {})[f"seed {seed}"] = found
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(name, found, flush=True)


if __name__ == "__main__":
    main()
