"""Real photographs for measurements without data: crops of the two that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from anyvit.data.preprocessing import Preprocessing


def sample_crops(count: int, image_size: int, *, seed: int = 0) -> Tensor:
    """Random square crops of two photographs, normalized (N, 3, image_size, image_size).

    Args:
        count: N.
        image_size: Pixels a side; a crop covers from a third of a photograph's shorter side to all of it.
        seed: The crops follow from it.
    """
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    draw = np.random.default_rng(seed)
    prepare = Preprocessing(image_size)
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = round(min(photograph.size) * draw.uniform(1 / 3, 1))
        left, top = (int(draw.integers(0, extent - side + 1)) for extent in photograph.size)
        crops.append(prepare(photograph.crop((left, top, left + side, top + side))))
    return torch.stack(crops)
