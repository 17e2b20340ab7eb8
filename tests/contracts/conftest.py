import pytest
import torch

from anyvit.models import create_model

MODELS = ("hydravit_small_patch2_8", "hsvit_c2a2_8")


@pytest.fixture
def model(request) -> torch.nn.Module:
    """A small model, for a test of a lever the first that it goes with; each lever gets it in its trainable form."""
    torch.manual_seed(0)
    models = [create_model(name, num_classes=5).eval() for name in MODELS]
    lever = request.getfixturevalue("lever") if "lever" in request.fixturenames else None
    return next(model for model in models if lever is None or lever.why_not(model) is None)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
