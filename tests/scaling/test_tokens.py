"""The tokens lever: which settings are worth trying, and a model that heads and tokens shrink together."""

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from anyvit.deploy.bundle import Bundle
from anyvit.errors import ModelError, SettingError
from anyvit.jobs.fit import fit
from anyvit.models import create_model
from anyvit.models.layers.token_reduction import ReducedViT
from anyvit.protocols import UNCHANGED
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.shrink import lever_named

LEVER = lever_named("tokens")
SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 5}


def test_settings_fall_in_the_number_of_tokens():
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224")
    assert LEVER.settings(model) == [
        UNCHANGED,
        {"method": "evit", "keep_rate": 0.9},
        {"method": "tome", "r": 7},
        {"method": "evit", "keep_rate": 0.7},
        {"method": "tome", "r": 13},
        {"method": "evit", "keep_rate": 0.5},
    ]


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}], ids=str)
def test_without_a_class_token_that_counts_only_merging_is_tried(options):
    settings = LEVER.settings(VisionTransformer(**SHAPE, **options))
    assert {setting.get("method") for setting in settings} == {None, "tome"}


def test_what_leaves_as_many_tokens_is_not_tried():
    """Of 16 patches, 15 and a fused one are as many."""
    assert all(setting.get("keep_rate") != 0.9 for setting in LEVER.settings(VisionTransformer(**SHAPE)))


def test_more_words_are_the_methods_arguments():
    model = VisionTransformer(**SHAPE)
    assert (
        LEVER.apply(model, {"method": "evit", "keep_rate": 0.5, "at": [1], "fuse": False}).token_counts()[1:] == [8] * 3
    )
    assert LEVER.apply(model, {"method": "tome", "r": 2, "inflect": -1}).token_counts() == [12, 10, 9, 9]
    assert isinstance(LEVER.apply(VisionTransformerDistilled(**SHAPE), {"method": "tome", "r": 2}), ReducedViT)


def test_subnetworks_of_an_elastic_model_lose_tokens_too():
    model = create_model("hydravit_small_patch2_8", num_classes=5).eval()
    images = torch.randn(2, 3, 8, 8)
    narrow = lever_named("heads").apply(model, {"heads": 3})
    smaller = LEVER.apply(narrow, {"method": "tome", "r": 0})
    assert torch.allclose(smaller(images), narrow(images), atol=1e-5)
    whole = LEVER.apply(model, {"method": "evit", "keep_rate": 1.0})
    assert torch.allclose(whole(images), model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"method": "evti"},
            r"^the tokens lever is set by a method, evit or tome, and its words: got {'method': 'evti'}$",
        ),
        (
            {"method": "tome", "keep_rate": 0.5},
            r"^the tokens lever, tome: got an unexpected keyword argument 'keep_rate'$",
        ),
        ({"method": "evit", "keep_rate": 0}, r"^blocks\.1: keep_rate must be above 0"),
    ],
)
def test_settings_that_cannot_be(setting, words):
    with pytest.raises(SettingError, match=words):
        LEVER.apply(VisionTransformer(**SHAPE), setting)


def test_refusals():
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
    assert "windows and pyramids need the whole grid" in LEVER.why_not(swin)
    with pytest.raises(ModelError, match="no class token; use tome"):
        LEVER.apply(VisionTransformer(**SHAPE, class_token=False, global_pool="avg"), {"method": "evit"})


@pytest.mark.slow
def test_heads_and_tokens_compose_and_are_served_from_the_bundle(tmp_path, hasty):
    arguments = {"model": "hydravit_tiny_patch2_8", "levers": "heads,tokens", "backends": "torch", "epochs": 0.2}
    bundle = fit("digits", **arguments, out=str(tmp_path / "run"))
    tried = [Result.from_json(entry) for entry in bundle.document["search"]["tried"]]
    assert all([step.name for step in r.plain.levers] == ["heads", "tokens"] for r in (*tried, *bundle.results))
    steps = Step("heads", {"heads": 1}), Step("tokens", {"method": "evit", "keep_rate": 0.5})
    chosen = Result(Candidate(steps, Step("torch")))
    runner = Bundle.load(bundle.folder).runner(chosen)
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(runner(images), bundle.runner(chosen)(images))
    assert bundle.shaped(chosen.plain).token_counts()[-1] < bundle.model().patch_embed.num_patches
