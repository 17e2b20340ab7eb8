"""Trains in processes that can be killed: `python -m tests.training.child` reads `FOLDER WORKERS` lines.

Each line forks a process that trains there; its number is printed at once, its exit status when it has ended. Starting
anew for each would spend the test's time on imports.
"""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from anyvit.data.preprocessing import Preprocessing
from anyvit.training import run as run_module
from anyvit.training import trainer
from anyvit.training.objectives.elastic import ElasticClassification
from anyvit.training.recipes import RECIPES
from tests.training.conftest import tinted_data, tiny_model

RECIPE = dataclasses.replace(
    RECIPES["scratch-small"],
    batch_size=4,
    padding_crop=1,
    drop_path=0.2,
    precision="float32",  # what is measured may differ between trainings that are compared
    threads=1,
)
EPOCHS = 3


def run(folder: Path, workers: int) -> None:
    torch.set_num_threads(1)
    run_module._CHECKPOINT_EVERY_S, run_module._CHECKPOINT_SHARE = 0.02, 1
    training = trainer.train(
        tiny_model(),
        tinted_data(),
        objective=ElasticClassification(),
        recipe=RECIPE,
        preprocessing=Preprocessing(8),
        folder=folder,
        epochs=EPOCHS,
        workers=workers,
    )
    losses = torch.tensor([entry["loss"] for entry in training.history], dtype=torch.float64)
    save_file({**training.model.state_dict(), "losses": losses}, folder / "result.safetensors")


if __name__ == "__main__":
    for line in sys.stdin:
        folder, workers = line.rsplit(maxsplit=1)
        child = os.fork()
        if not child:
            run(Path(folder), int(workers))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
