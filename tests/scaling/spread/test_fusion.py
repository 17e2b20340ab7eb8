import pytest
import torch

from anyvit.errors import SettingError
from anyvit.scaling.spread.fusion import Fusion, confidences, draw_present, train_fusion, without_missing

WIDTHS = (4, 6)


@pytest.fixture
def features():
    """Two sub-models; each knows two of four classes, and has a weak idea of the others."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    features = torch.randn(400, 10, generator=draw)
    for label in range(4):
        features[labels == label, (0, 1, 4, 5)[label]] += 4
        features[labels == label, (6, 7, 2, 3)[label]] += 2
    return features, labels


def test_a_missing_submodel_is_zeros():
    fusion, parts = Fusion(WIDTHS, 3), (torch.randn(2, 4), torch.randn(2, 6))
    assert (fusion.fc1.out_features, sorted(fusion.state_dict())) == (
        5,
        ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"],
    )
    assert torch.equal(fusion((None, parts[1])), fusion((torch.zeros(2, 4), parts[1])))
    filled = without_missing(torch.cat(parts, dim=1), WIDTHS, torch.tensor([False, True]))
    assert torch.equal(fusion.fuse(filled), fusion((None, parts[1])))


@pytest.mark.parametrize("parts", [(None, None), (torch.zeros(1, 4),)])
def test_nothing_to_fuse(parts):
    with pytest.raises(SettingError, match="2 sub-models are fused, one of them at least"):
        Fusion(WIDTHS, 3)(parts)


def accuracy(fusion, features, labels, present):
    with torch.no_grad():
        return (
            (fusion.fuse(without_missing(features, WIDTHS, torch.tensor(present))).argmax(1) == labels).float().mean()
        )


def test_training_with_submodels_missing_makes_their_loss_gentle(features):
    brittle = train_fusion(*features, WIDTHS, 4, epochs=30, lr=2e-2, missing=0)
    robust = train_fusion(*features, WIDTHS, 4, epochs=30, lr=2e-2, missing=0.3)
    both = [True, True]
    assert accuracy(robust, *features, both) > 0.95
    for present in ([True, False], [False, True]):
        assert accuracy(robust, *features, present) > accuracy(brittle, *features, present)


def test_the_same_seed_gives_the_same_weights(features):
    one, same, other = (train_fusion(*features, WIDTHS, 4, epochs=1, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["fc1.weight"], other["fc1.weight"])


def test_one_submodel_always_stays():
    present = draw_present(1000, 3, 0.9, torch.Generator().manual_seed(0))
    assert present.any(dim=1).all()
    assert 0.1 < present.float().mean() < 0.4


@pytest.mark.parametrize("missing", [-0.1, 1.0])
def test_how_often_submodels_may_miss(features, missing):
    with pytest.raises(SettingError, match=r"missing must be in \[0, 1\)"):
        train_fusion(*features, WIDTHS, 4, missing=missing)


def test_features_that_do_not_match(features):
    with pytest.raises(SettingError, match=r"features \(400, 10\) are not 400 images of 9"):
        train_fusion(*features, (4, 5), 4)


def test_confidence_needs_no_training():
    sure, unsure = torch.tensor([[-9.0, 5.0, 0.0]]), torch.tensor([[5.0, 0.0, 1.0]])
    scores = confidences((sure, unsure), ((0, 2), (1, 3)), 4)
    assert scores.argmax(1).tolist() == [0]
    assert scores[0, 1] + scores[0, 3] < 0.03  # the second takes it for a stranger
    assert confidences((None, unsure), ((0, 2), (1, 3)), 4)[0, [0, 2]].tolist() == [0, 0]
    plain = confidences((sure[:, 1:], unsure[:, 1:]), ((0, 2), (1, 3)), 4, other_class=False)
    torch.testing.assert_close(plain.sum(1), torch.tensor([2.0]))
    with pytest.raises(SettingError, match="all sub-models are missing"):
        confidences((None, None), ((0, 2), (1, 3)), 4)
