import numpy as np
import pytest
import torch

from anyvit.data.dataset import DataSet, Split
from anyvit.data.images import ArrayImages
from anyvit.data.preprocessing import Preprocessing
from anyvit.models.hydravit import HydraViT


def tinted_images(count, seed):
    """Four classes that anyone can tell: the tint of the picture."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    pixels = rng.integers(0, 90, (count, 8, 8, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image += np.array([(150, 0, 0), (0, 150, 0), (0, 0, 150), (0, 0, 0)], dtype=np.uint8)[label]
    return Split(ArrayImages(list(pixels), [f"{i}" for i in range(count)]), labels.astype(np.int64))


def tinted_data():
    splits = {"train": tinted_images(72, 0), "val": tinted_images(32, 1), "test": tinted_images(32, 2)}
    return DataSet("tinted", ("a", "b", "c", "d"), splits, image_size=8, notes=(), mirrored=False)


def tiny_model():
    torch.manual_seed(0)
    return HydraViT(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=4, elastic_heads=(1, 2, 3)
    )


@pytest.fixture
def data():
    return tinted_data()


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def preprocessing():
    return Preprocessing(image_size=8)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on so little work cost more than they bring, on a busy machine a hundredfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
