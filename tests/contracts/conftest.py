import pytest
import torch

from anyvit.models import create_model


@pytest.fixture
def model() -> torch.nn.Module:
    """A small trained-for-everything model; each lever gets it in its own trainable form."""
    torch.manual_seed(0)
    return create_model("hydravit_small_patch2_8", num_classes=5).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
