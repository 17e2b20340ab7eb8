import pytest
import torch
from torch import nn

from anyvit.models import HydraViT

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def shuffled(model: nn.Module) -> nn.Module:
    """The model with random weights everywhere, norms and biases too, so that no cut goes unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost these small models more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hydra() -> HydraViT:
    return shuffled(HydraViT(**SHAPE, elastic_heads=(1, 2, 3, 4)))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
