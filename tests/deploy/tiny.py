"""A bundle small enough for tests: a ViT of 4 heads on the digits of scikit-learn, trained for a moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from anyvit.backends.precision import on_threads
from anyvit.costs.device import this_device
from anyvit.data import DataSet, open_data
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.bundle import Bundle, write_bundle
from anyvit.protocols import UNCHANGED
from anyvit.scaling.candidate import Candidate, Cascade, Result, Step
from anyvit.scaling.form import Form
from anyvit.scaling.scoring import scores_of
from anyvit.scaling.workshop import prepare

PREPROCESSING = Preprocessing(8)
FORM = Form(
    "vit_tiny_patch16_224",
    {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 10},
    (Step("heads"),),
)


def candidate(heads: int, precision: str | None = None) -> Candidate:
    shape = {"heads": heads} if heads < 4 else UNCHANGED
    return Candidate((Step("heads", shape),), Step("torch", {"precision": precision} if precision else UNCHANGED))


RESULTS = (
    Result(candidate(4), {"latency": 0.004, "params": 30_000, "size": 120_000}, 0.95),
    Result(candidate(4, "bfloat16"), {"latency": 0.005, "params": 30_000, "size": 120_000}, 0.94),
    Result(candidate(3), {"latency": 0.003, "params": 17_000, "size": 68_000}, 0.90),
    Result(candidate(2), {"latency": 0.002, "params": 8_000, "size": 32_000}, 0.80),
)


@cache
def digits() -> DataSet:
    return open_data("digits")


@cache
def trained() -> torch.nn.Module:
    """The model after a second of training: about four digits of five are right."""
    torch.manual_seed(0)
    model = FORM.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = list(evaluation_batches(digits().splits["train"], PREPROCESSING, 128))
    with on_threads(1):
        for images, labels in 6 * batches:
            for heads in (4, 2):
                F.cross_entropy(model(images, heads=heads), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@cache
def _document() -> str:
    data, device = digits(), this_device()
    runner = prepare(trained(), RESULTS[0].candidate, torch.zeros(1, 3, 8, 8))
    with on_threads(1):
        scores = scores_of(runner, data.splits["test"], PREPROCESSING, data.classes)
    content = {
        "task": "classification",
        "classes": list(data.classes),
        "preprocessing": PREPROCESSING.to_json(),
        "model": FORM.to_json(),
        "data": {
            "source": "digits",
            "seed": 0,
            "digests": {name: data.digest(name) for name in data.splits},
            "counts": {name: len(split) for name, split in data.splits.items()},
            "notes": list(data.notes),
        },
        "run": {"data": "digits", "budget": "latency<=4.5ms"},
        "command": "anyvit fit digits --budget 'latency<=4.5ms'",
        "device": {**asdict(device), "fingerprint": device.fingerprint},
        "conditions": {"batch": 1, "threads": 1, "image_size": 8},
        "finished": True,
        "candidates": [result.to_json() for result in RESULTS],
        "front": [result.id for result in (RESULTS[3], RESULTS[2], RESULTS[0])],
        "chosen": RESULTS[0].id,
        "promise": {
            "status": "kept",
            "bounds": [
                {
                    "bound": "latency<=4.5ms",
                    "cost": "latency",
                    "limit": 0.0045,
                    "value": 0.0042,
                    "rounds": [0.0041, 0.0042, 0.004],
                    "met": True,
                }
            ],
        },
        "test": scores.to_json(),
        "history": [
            {
                "step": 10 * n,
                "epoch": float(n),
                "seconds": n,
                "loss": 2.3 / n,
                "accuracy": 0.3 * n,
                "accuracy/full-torch": 0.3 * n,
            }
            for n in (1, 2, 3)
        ],
    }
    return json.dumps(content)


def document() -> dict[str, Any]:
    """The content of `bundle.json`, as a run gives it to `write_bundle`."""
    return json.loads(_document())


def searched() -> dict[str, Any]:
    """Changes to the document: what a search over heads, tokens and runtimes has found, with a reducing one chosen."""

    def result(tokens: dict[str, Any], backend: Step, latency: float, macs: float, accuracy: float, heads: int = 4):
        steps = (Step("heads", {"heads": heads} if heads < 4 else {}), Step("tokens", tokens))
        costs = {"latency": latency, "latency_p95": latency, "macs": macs, "params": 3e4, "size": 12e4}
        return Result(Candidate(steps, backend), costs, accuracy)

    evit, tome = {"method": "evit", "keep_rate": 0.5}, {"method": "tome", "r": 1}
    eager, fast = Step("torch"), Step("torch", {"precision": "bfloat16"})
    whole, quick = result({}, eager, 0.008, 2e5, 0.95), result({}, fast, 0.005, 2e5, 0.94)
    chosen, narrow = result(evit, fast, 0.004, 1.6e5, 0.93), result(evit, fast, 0.003, 1e5, 0.85, heads=2)
    int8 = Step("openvino", {"precision": "int8-static"})
    cascade = Result(Cascade(narrow.candidate, quick.candidate, 0.8), {**quick.costs, "latency": 0.0075}, 0.94)
    tried = [
        (result(tome, fast, 0.0052, 1.5e5, 0.93), "its levers gain nothing here"),
        (result(evit, eager, 0.0064, 1.6e5, 0.92), f"{chosen.id} is as good in both"),
        (result({}, int8, 0.003, 2e5, 0.1), "its answers are wrong"),
        (cascade, "others on the front are kept in its stead"),
        (Result(Candidate((), Step("cuda_graphs"))), "cannot be built: no GPU"),
    ]
    parts = {None: chosen, "tokens": quick, "torch": replace(chosen, costs={**chosen.costs, "latency": 0.006})}
    kept = (whole, quick, chosen, narrow)
    return {
        "run": {"data": "digits", "budget": "latency<=4.5ms, accuracy>=0.9"},
        "candidates": [each.to_json() for each in kept],
        "front": [each.id for each in kept],
        "chosen": chosen.id,
        "search": {
            "size": 96,
            "measured": 8,
            "images": 128,
            "skipped": {"scales": "it is made for one scale"},
            "absent": ["int8 needs nncf: pip install 'anyvit[int8]'"],
            "tried": [{**each.to_json(), "why": why} for each, why in tried],
            "contributions": [
                {"without": name, "id": each.id, "accuracy": each.accuracy, **each.costs}
                for name, each in parts.items()
            ],
        },
    }


def training_images() -> list[int]:
    seen = [digits().splits[name].images for name in ("train", "val")]
    return [images.content_hash(index) for images in seen for index in range(len(images))]


def write_tiny(folder: Path, *, seen: Sequence[int] | None = None, **changes: Any) -> Bundle:
    """Write the bundle into `folder`, with `changes` to its document; `seen` replaces the hashes of its images."""
    hashes = training_images() if seen is None else seen
    return write_bundle(folder, model=trained(), document={**document(), **changes}, training_images=hashes)
