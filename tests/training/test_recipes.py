import dataclasses
import json

import pytest

from anyvit.errors import SettingError
from anyvit.training.recipes import RECIPES, Recipe, find_recipe, recipe_for


def test_recipes_are_found_by_name_and_by_need():
    assert find_recipe("fine-tune") is RECIPES["fine-tune"]
    assert [recipe_for(size, trained=False) for size in (8, 32, 96, 224)] == [
        "scratch-tiny", "scratch-small", "scratch-small", "scratch",
    ]  # fmt: skip
    assert recipe_for(8, trained=True) == "fine-tune"


def test_file_changes_its_base(tmp_path):
    toml, json_file = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text('base = "fine-tune"\nlr = 1e-4\ncrop_scale = [0.5, 1]\n')
    json_file.write_text(json.dumps({"batch_size": 8, "crop_scale": None}))
    assert find_recipe(str(toml)) == dataclasses.replace(RECIPES["fine-tune"], lr=1e-4, crop_scale=(0.5, 1.0))
    assert Recipe.from_file(json_file, RECIPES["scratch"]) == dataclasses.replace(
        RECIPES["scratch"], batch_size=8, crop_scale=None
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr = 1", r"mine.toml: unknown key 'lrr'. Did you mean 'lr'\?"),
        ('base = "finetune"', r"unknown recipe 'finetune'. Did you mean 'fine-tune'\?"),
        ('lr = "fast"', "lr must be a number from 1e-09 to 10, not 'fast'"),
        ("lr = nan", "lr must be a number from 1e-09 to 10, not nan"),
        ("batch_size = 2.5", "batch_size must be a whole number from 1 to 65536, not 2.5"),
        ("mixing = true", "mixing must be a number from 0 to 1, not True"),
        ("crop_scale = [0.9, 0.2]", r"crop_scale must be two numbers, 0 < least <= most <= 1, not \[0.9, 0.2\]"),
        ("lr == 1", "mine.toml is not valid TOML"),
    ],
)
def test_file_says_what_is_wrong(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SettingError, match=words):
        find_recipe(str(file))


def test_missing_things_are_named(tmp_path):
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        find_recipe(str(tmp_path / "none.json"))
    with pytest.raises(SettingError, match=r"unknown recipe 'scrach'. Did you mean 'scratch'\?.* .json or .toml"):
        find_recipe("scrach")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(SettingError, match="must hold names and values"):
        find_recipe(str(tmp_path / "list.json"))
