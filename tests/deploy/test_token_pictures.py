"""Pictures of tokens: what is dark or of one colour is what the model gave up or merged."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.bundle import write_bundle
from anyvit.deploy.token_pictures import STAGES, token_pictures
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.form import Form
from tests.deploy.tiny import document

GRID, SIDE = 4, 40  # patches, and pixels of each in a picture
SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "num_classes": 10}


def bundle_of(folder, tokens, depth=3, **options):
    torch.manual_seed(0)
    form = Form("vit_tiny_patch16_224", {**SHAPE, "depth": depth, **options})
    model = form.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    chosen = Result(Candidate((Step("tokens", tokens),), Step("torch")), {"latency": 0.004, "params": 1e4}, 0.9)
    content = {
        "model": form.to_json(),
        "preprocessing": Preprocessing(16, 0.8, "bilinear").to_json(),
        "conditions": {"batch": 1, "threads": 1, "image_size": 16},
        "candidates": [chosen.to_json()],
        "chosen": chosen.id,
    }
    return write_bundle(folder, model=model, document={**document(), **content}, training_images=[])


def image(seed=0, size=(30, 20)):
    """A bright one: patches of one colour each in the crop of 16 pixels in the middle."""
    colours = np.random.default_rng(seed).integers(120, 250, (5, 8, 3)).astype(np.uint8)
    return Image.fromarray(colours.repeat(4, 0).repeat(4, 1)).resize(size, Image.Resampling.NEAREST)


def pixels(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(float)


def patches(uri):
    """The pixels of each patch without those at its edge, where borders are drawn, (16, SIDE - 2, SIDE - 2, 3)."""
    tiles = pixels(uri).reshape(GRID, SIDE, GRID, SIDE, 3).swapaxes(1, 2).reshape(GRID * GRID, SIDE, SIDE, 3)
    return tiles[:, 1:-1, 1:-1]


def last_tokens(bundle, picture):
    *_, tokens = bundle.shaped(bundle.chosen.candidate).stages(bundle.preprocessing(picture)[None])
    return tokens


@pytest.mark.parametrize("fuse", [True, False])
def test_evit_what_is_given_up_is_dark(tmp_path, fuse):
    bundle = bundle_of(tmp_path, {"method": "evit", "keep_rate": 0.5, "at": [0, 1], "fuse": fuse})
    for seed in range(3):
        (picture,) = token_pictures(bundle, [image(seed)])
        tokens = last_tokens(bundle, image(seed))
        stay = {int(origin) - 1 for origin in tokens.origins()[0, 1:] if origin > 0}
        before, after = patches(picture.uri), patches(picture.stages[-1].uri)
        assert {place for place, patch in enumerate(after) if patch.mean() < 90} == set(range(16)) - stay
        assert np.abs(after - before)[sorted(stay)].max() < 6
        assert [stage.block for stage in picture.stages] == [1, 2]
        others = "and 1 fused token" if fuse else "the others dropped"
        assert picture.stages[0].words == f"8 of 16 patches, {others}"


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}], ids=str)
def test_tome_what_is_merged_has_its_mean_colour(tmp_path, options):
    bundle = bundle_of(tmp_path, {"method": "tome", "r": 3}, **options)
    (picture,) = token_pictures(bundle, [image()])
    tokens = last_tokens(bundle, image())
    places = tokens.places()[0, tokens.num_prefix_tokens :].numpy()
    before, after = patches(picture.uri), patches(picture.stages[-1].uri)
    groups = [np.flatnonzero(places == place) for place in np.unique(places)]
    assert max(map(len, groups)) > 1
    for group in groups:
        expected = before[group].mean(axis=(0, 1, 2)) if len(group) > 1 else before[group]
        assert np.abs(after[group] - expected).max() < 8
    assert picture.stages[-1].words == f"{len(groups)} tokens of 16 patches"


def test_it_is_drawn_on_what_the_model_sees(tmp_path):
    bundle = bundle_of(tmp_path, {"method": "tome", "r": 1})
    for size in ((30, 20), (20, 50)):
        picture = image(size=size)
        seen = bundle.preprocessing.crop(picture).resize((160, 160), Image.Resampling.NEAREST)
        (drawn,) = token_pictures(bundle, [picture])
        assert np.abs(pixels(drawn.uri) - np.asarray(seen, dtype=float)).mean() < 4


def test_of_many_reductions_a_few_are_drawn(tmp_path):
    bundle = bundle_of(tmp_path, {"method": "tome", "r": 1}, depth=9)
    pictures = token_pictures(bundle, [image(0), image(1)])
    assert [len(picture.stages) for picture in pictures] == [STAGES, STAGES]
    assert [stage.block for stage in pictures[0].stages] == [1, 4, 6, 9]
    assert sum(len(stage.uri) for stage in pictures[0].stages) < 40_000


def test_whoever_keeps_all_tokens_has_no_pictures(tmp_path):
    assert token_pictures(bundle_of(tmp_path / "a", {}), [image()]) == []
    assert token_pictures(bundle_of(tmp_path / "b", {"method": "tome", "r": 0}), [image()]) == []
    assert token_pictures(bundle_of(tmp_path / "c", {"method": "tome", "r": 1}), []) == []
