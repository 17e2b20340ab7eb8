"""CIFAR-10 as parquet, where the shared data lies beside the checkout."""

from pathlib import Path

import numpy as np
import pytest

from anyvit.data import open_data

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.mark.shared
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no CIFAR-10 in {FOLDER}")
@pytest.mark.slow
def test_cifar10():
    data = open_data(FOLDER)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 42500, "val": 7500, "test": 5000}
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert (data.image_size, data.mirrored, data.class_weights) == (32, True, None)
    assert all(split.images.in_memory for split in data.splits.values())
    assert np.bincount(data.splits["val"].labels).tolist() == [750] * 10
