"""The reparameterize lever: train channel-idle, answer merged."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import anyvit
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.layers.channel_idle import MergedMlp, idle_share
from anyvit.protocols import UNCHANGED, Needs
from anyvit.scaling.shrink import lever_named
from tests.conftest import TINY

LEVER = lever_named("reparameterize")


def _plain(width: int = 32, depth: int = 2) -> VisionTransformer:
    return VisionTransformer(img_size=8, patch_size=2, embed_dim=width, depth=depth, num_heads=4, num_classes=3).eval()


def test_settings_are_what_the_model_is_trained_for():
    plain = _plain()
    assert LEVER.settings(plain) == [UNCHANGED]
    model = LEVER.before_training(plain, UNCHANGED)
    assert LEVER.settings(model) == [UNCHANGED, {"idle": 0.5}]
    assert LEVER.before_training(model, UNCHANGED) is model
    assert LEVER.before_training(model, {"idle": 0.5}) is model
    assert LEVER.settings(LEVER.before_training(plain, {"idle": 0.75})) == [UNCHANGED, {"idle": 0.75}]
    assert LEVER.settings(create_model("repavit_tiny_patch2_8")) == [UNCHANGED, {"idle": 0.75}]
    assert LEVER.needs({"idle": 0.5}) is Needs.TRAINING


def test_what_would_not_get_smaller_is_not_offered():
    assert LEVER.settings(LEVER.before_training(_plain(), {"idle": 0.1})) == [UNCHANGED]  # it pays above 1 / (2 * 4)
    assert LEVER.settings(create_model("repavit_tiny_patch2_8", feature_norm="layer")) == [UNCHANGED]


def test_wide_models_get_the_papers_ratio_for_wide_ones():
    with torch.device("meta"):
        shares = [idle_share(LEVER.before_training(_plain(width, depth=1), UNCHANGED)) for width in (764, 768)]
    assert shares == [0.5, 0.75]


def test_the_merged_model_answers_as_the_trained_one():
    torch.manual_seed(0)
    model, images = LEVER.before_training(_plain(), UNCHANGED), torch.randn(64, 3, 8, 8)
    model.train()(images)  # statistics that are not those of the start
    model.eval()
    smaller = LEVER.apply(model, {"idle": 0.5})
    torch.testing.assert_close(smaller(images), model(images), rtol=1e-5, atol=1e-5)
    assert all(type(block.mlp) is MergedMlp for block in smaller.blocks)
    assert smaller.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv.weight


def test_an_elastic_model_is_trained_at_its_full_size():
    elastic = create_model(TINY, num_classes=3)
    model = LEVER.before_training(elastic, UNCHANGED)
    assert type(model) is VisionTransformer
    assert model.embed_dim == elastic.embed_dim
    assert "statistics of one width" in LEVER.conflicts()["heads"]
    assert "ChannelIdleMlp" in lever_named("heads").why_not(model)


@pytest.mark.parametrize("setting", [{"heads": 2}, {"idle": "half"}, {"idle": 0.5, "heads": 2}, {"idle": True}])
def test_wrong_settings_are_refused(setting):
    with pytest.raises(SettingError, match=r"^the reparameterize lever is set by \{'idle': share\}: got "):
        LEVER.apply(create_model("repavit_tiny_patch2_8").eval(), setting)


def test_a_setting_that_the_model_was_not_trained_for_is_refused():
    with pytest.raises(SettingError, match=r"^this model was trained with 0\.75 of its hidden units idle, not 0\.5$"):
        LEVER.apply(create_model("repavit_tiny_patch2_8").eval(), {"idle": 0.5})
    with pytest.raises(ModelError, match=r"^VisionTransformer is not channel-idle: make it so with before_training"):
        LEVER.apply(_plain(), {"idle": 0.5})
    smaller = LEVER.apply(create_model("repavit_tiny_patch2_8").eval(), {"idle": 0.75})
    assert LEVER.why_not(smaller) == "blocks.0.mlp is merged already"


@pytest.mark.slow
def test_fit_trains_the_idle_form_and_answers_with_the_merged_one(photos, tmp_path, hasty):
    out = str(tmp_path / "out")
    bundle = anyvit.fit(str(photos), model=TINY, levers="reparameterize", budget="params<=70k", epochs=2, out=out)
    by_id = {result.id: result for result in bundle.results}
    assert bundle.chosen.id in ("idle0.5-torch", "idle0.5-torch-bfloat16")
    assert by_id["idle0.5-torch"].accuracy == by_id["full-torch"].accuracy
    assert by_id["idle0.5-torch"].costs["macs"] < 0.8 * by_id["full-torch"].costs["macs"]
    images = torch.randn(5, 3, 8, 8)
    answers = [bundle.runner(by_id[name])(images) for name in ("full-torch", "idle0.5-torch")]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    assert anyvit.predict(out, str(photos / "dark"))[0].label in ("dark", "light")
    assert anyvit.export(out, data=str(photos)).verification.holds
