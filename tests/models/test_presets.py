"""The registered shapes."""

import pytest
import timm
import torch

from anyvit.costs.counts import count_macs, count_params
from anyvit.errors import ModelError
from anyvit.models import PRESETS, HydraViT, create_model

NAMES = [*PRESETS, "hydravit_dyn_patch16_224"]

# heads: parameters, multiply-accumulates in millions (1000 classes, 224 px)
PUBLISHED = {
    3: (5_717_416, 1254),
    4: (9_982_184, 2136),
    5: (15_426_600, 3251),
    6: (22_050_664, 4599),
    7: (29_854_376, 6179),
    8: (38_837_736, 7991),
    9: (49_000_744, 10036),
    10: (60_343_400, 12313),
    11: (72_865_704, 14822),
    12: (86_567_656, 17564),
}


@pytest.mark.parametrize("name", NAMES)
def test_preset_is_a_timm_model(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, drop_path_rate=0.1)
    size = model.pretrained_cfg["input_size"]
    assert isinstance(model, HydraViT)
    assert model.patch_embed.img_size == size[1:]
    assert model.pretrained_cfg["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert name.endswith(f"_{size[1]}")
    assert model(torch.empty(1, *size, device="meta")).shape == (1, 7)
    assert model(torch.empty(1, *size, device="meta"), heads=model.elastic_heads[0]).shape == (1, 7)


def test_our_names_are_not_timms():
    assert not [name for name in NAMES if hasattr(timm.models, name)]
    assert set(NAMES) <= set(timm.list_models("hydravit*"))


def test_each_size_has_a_choice():
    for size in (8, 32, 64, 96, 224):
        found = {name.split("_")[1]: preset for name, preset in PRESETS.items() if preset.image_size == size}
        assert list(found) == ["tiny", "small", "base"]
        assert len(found["small"].arguments["elastic_heads"]) >= 4


@pytest.mark.parametrize(("heads", "figures"), PUBLISHED.items())
def test_parameters_and_macs_are_the_published(heads, figures):
    with torch.device("meta"):
        narrow = create_model("hydravit_base_patch16_224").extract(heads)
    assert count_params(narrow) == figures[0]
    assert round(count_macs(narrow, 224) / 1e6) == figures[1]


def test_separate_classifiers_cost_what_the_paper_says():
    with torch.device("meta"):
        together = create_model("hydravit_base_patch16_224")
        apart = create_model("hydravit_base_patch16_224", separate_classifiers=True)
    assert count_params(apart) - count_params(together) == 1000 * 64 * sum(range(3, 13)) + 10 * 1000 - 769_000


def test_arguments_of_timm_pass_through():
    model = create_model("hydravit_small_patch4_32", img_size=48, in_chans=1, num_classes=3, global_pool="avg")
    assert model(torch.zeros(1, 1, 48, 48), heads=2).shape == (1, 3)
    maps = timm.create_model("hydravit_small_patch4_32", features_only=True, out_indices=(1, 3))
    assert [tuple(x.shape) for x in maps(torch.zeros(1, 3, 32, 32))] == [(1, 192, 8, 8)] * 2


def test_the_references_own_name_and_argument():
    with torch.device("meta"):
        model = create_model("hydravit_dyn_patch16_224", dim=384)
    assert (model.num_heads, model.head_dim, model.elastic_heads) == (6, 64, (2, 3, 4, 5, 6))
    with pytest.raises(ModelError, match=r"^dim must be a multiple of head_dim 64, such as 192, 384 or 768: got 400$"):
        create_model("hydravit_dyn_patch16_224", dim=400)


def test_wrong_names_and_arguments():
    with pytest.raises(ModelError, match=r"^unknown model 'hydravit_smal_patch2_8'\. Did you mean hydravit_s"):
        create_model("hydravit_smal_patch2_8")
    with pytest.raises(ModelError, match=r"^hydravit_tiny_patch2_8: .*unexpected keyword argument 'colour'"):
        create_model("hydravit_tiny_patch2_8", colour=True)
    with pytest.raises(ModelError, match=r"^hydravit_tiny_patch2_8: No pretrained weights exist"):
        create_model("hydravit_tiny_patch2_8", pretrained=True)
