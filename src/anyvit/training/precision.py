"""Whether this machine trains faster in bfloat16: measured once, then fixed for the run."""

from __future__ import annotations

import time
from copy import deepcopy

import torch
from torch import nn

from anyvit.training.objectives import Objective

FLOAT32, BFLOAT16 = "32-true", "bf16-mixed"  # as Lightning names them

_ROUNDS = 5
_ENOUGH_SECONDS = 5.0
_WORTH_IT = 0.9  # bfloat16 costs accuracy, so it has to gain something
_PIXELS = 256 * 32 * 32  # in a batch; a large model on large images would take minutes otherwise


def choose_precision(
    model: nn.Module, objective: Objective, batch_size: int, image_size: int, num_classes: int
) -> str:
    """"bf16-mixed" where training `model` is at least a tenth faster with it, otherwise "32-true".

    On a GPU it is bfloat16 wherever the GPU knows it. On the CPU a few steps are timed, both ways in turn.
    """
    if torch.cuda.is_available():
        return BFLOAT16 if torch.cuda.is_bf16_supported() else FLOAT32
    if torch.backends.mps.is_available():
        return FLOAT32
    model = deepcopy(model).train()
    batch = min(batch_size, max(4, _PIXELS // image_size**2))
    images = torch.zeros(batch, 3, image_size, image_size)
    targets = torch.full((batch, num_classes), 1 / num_classes)

    def seconds(*, bfloat16: bool) -> float:
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, _ = objective.loss(model, images, targets, step=0)
        loss.backward()
        return time.perf_counter() - begun

    begun = time.perf_counter()
    exact, short = seconds(bfloat16=False), seconds(bfloat16=True)  # these warm up, and count only where they must
    for _ in range(_ROUNDS):
        if time.perf_counter() - begun > _ENOUGH_SECONDS:
            break
        exact, short = min(exact, seconds(bfloat16=False)), min(short, seconds(bfloat16=True))
    return BFLOAT16 if short < _WORTH_IT * exact else FLOAT32
