"""What can be wrong with what a user gives, and the words and the exit status of the answer: one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import anyvit
from anyvit.errors import AnyViTError
from tests.conftest import TINY, write_photos

BUDGET, DATA, BUNDLE, SETTING = 3, 4, 5, 2


@dataclass(frozen=True)
class Place:
    """Where a row of the table works: an empty folder, good data, and a good bundle of its own."""

    folder: Path
    photos: Path
    bundle: Path

    def fit(self, data: Path | str | None = None, **arguments: object) -> None:
        chosen = {"model": TINY, "budget": "params<=1M", "epochs": 1, "out": str(self.folder / "out")} | arguments
        anyvit.fit(str(data or self.photos), **chosen)

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def data(self, counts: dict[str, int]) -> Path:
        return write_photos(self.folder / "data", counts)

    def damage(self, pattern: str) -> str:
        """Turn over the last bytes of a file of the bundle."""
        (path,) = self.bundle.glob(pattern)
        path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
        return str(self.bundle)

    def document(self, **changes: object) -> str:
        path = self.bundle / "bundle.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(self.bundle)


@pytest.fixture
def place(tmp_path, photos, own_bundle, hasty):
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place", photos, own_bundle)


def corrupt(place: Place, count: int) -> Path:
    data = place.data({"cat": 20, "dog": 20})
    for number in range(count):
        (data / "cat" / f"{number}.png").write_bytes(b"" if number % 2 else b"no image")
    return data


def loose(place: Place) -> Path:
    (place.folder / "data").mkdir()
    Image.new("RGB", (8, 8)).save(place.folder / "data" / "a.png")
    return place.folder / "data"


def empty(place: Place) -> Path:
    (place.folder / "data").mkdir()
    return place.folder / "data"


def empty_class(place: Place) -> Path:
    data = place.data({"cat": 5, "dog": 5})
    (data / "cow").mkdir()
    return data


def doubled(place: Place) -> Path:
    data = place.folder / "data"
    for split in ("train", "test"):
        write_photos(data / split, {"cat": 5, "dog": 5})
    return data


def other_weights(place: Place) -> str:
    path = place.folder / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    return str(path)


def strange_class(place: Place) -> None:
    anyvit.evaluate(str(place.bundle), str(place.data({"7": 3, "eleven": 3})))


Case = tuple[str, Callable[[Place], object], int, str]

DATA_SETS: list[Case] = [
    ("missing", lambda p: p.fit("no/such"), DATA, r"^no/such does not exist\. What opens: digits.*a folder per class"),
    (
        "unknown kind of file",
        lambda p: p.fit(p.file("x.docx", "")),
        DATA,
        r"x\.docx is of no known format\. What opens",
    ),
    ("empty folder", lambda p: p.fit(empty(p)), DATA, "has no folder per class. It holds no images: put them as"),
    ("loose images", lambda p: p.fit(loose(p)), DATA, "There are images, but not in a folder of their class"),
    ("empty class", lambda p: p.fit(empty_class(p)), DATA, "no images of class 'cow' in .*Add at least two images"),
    ("no images", lambda p: p.fit(Path(p.file("d/c/a.txt", "x")).parents[1]), DATA, "^no images in .*known kind"),
    ("one class", lambda p: p.fit(p.data({"cat": 9})), DATA, "has only one class, 'cat'. Telling classes apart takes"),
    ("one image", lambda p: p.fit(p.data({"cat": 9, "dog": 1})), DATA, r"too few different images of dog \(1\)"),
    ("too small", lambda p: p.fit(p.data({"cat": 2, "dog": 2})), DATA, "too few images in .* to hold some out as val"),
    ("corrupt", lambda p: p.fit(corrupt(p, 3)), DATA, r"^3 of 40 images in .* are damaged, more than 5%: .*Replace or"),
    ("same in test", lambda p: p.fit(doubled(p)), DATA, "every image of train in .* is in another split too"),
    ("empty csv", lambda p: p.fit(p.file("a.csv", "")), DATA, r"a\.csv is empty\. It needs the columns path and label"),
    (
        "csv columns",
        lambda p: p.fit(p.file("a.csv", "x,y\n1,2")),
        DATA,
        "has the columns x, y. It needs path and label",
    ),
    ("csv file", lambda p: p.fit(p.file("a.csv", "path,label\nb.png,c")), DATA, r"a\.csv line 2: no file .*b\.png"),
    (
        "csv cells",
        lambda p: p.fit(p.file("a.csv", "path,label\nb.png")),
        DATA,
        "line 2: 1 cells where the header has 2",
    ),
    ("parquet", lambda p: p.fit(p.file("a.parquet", "PAR1")), DATA, r"a\.parquet is not a readable parquet file"),
    ("torchvision", lambda p: p.fit("torchvision:CIFAR11"), DATA, "unknown torchvision data set 'CIFAR11'.*'CIFAR10'"),
]

BUDGETS: list[Case] = [
    ("cost", lambda p: p.fit(budget="latncy<=5ms"), SETTING, "unknown cost 'latncy'. Did you mean 'latency'. Known: "),
    ("unit", lambda p: p.fit(budget="latency<=5MB"), SETTING, "unknown unit 'MB' of latency. Known: ms, s, us"),
    ("no unit", lambda p: p.fit(budget="latency<=5"), SETTING, "^latency<=5 lacks a unit. Write latency<=5ms. Known: "),
    ("operator", lambda p: p.fit(budget="latency>=5ms"), SETTING, "is bounded from above. Write latency<=5ms"),
    ("negative", lambda p: p.fit(budget="size<=-1MB"), SETTING, "the limit must be a finite number above 0"),
    ("accuracy", lambda p: p.fit(budget="accuracy>=90"), SETTING, "accuracy is at most 1. Write accuracy>=0.9 or"),
    ("twice", lambda p: p.fit(budget="size<=1MB,size<=2MB"), SETTING, "size is bounded twice: size<=1MB and size<=2MB"),
    ("empty", lambda p: p.fit(budget="size<=1MB,"), SETTING, "has an empty clause. Write it like"),
    ("no bound", lambda p: p.fit(budget="fast"), SETTING, "cannot read 'fast': a bound is a cost"),
    (
        "reach",
        lambda p: p.fit(budget="params<=9"),
        BUDGET,
        r"params<=9 \(best: 10.\d k with heads1-torch\) cannot be met",
    ),
    ("bundle", lambda p: anyvit.evaluate(str(p.bundle), budget="size<=1B"), BUDGET, "misses size<=1B by"),
    ("unmeasured", lambda p: anyvit.evaluate(str(p.bundle), budget="memory<=1GB"), BUDGET, "no figures for memory"),
]

ARGUMENTS: list[Case] = [
    (
        "model",
        lambda p: p.fit(model="vit_smal_patch16_224"),
        SETTING,
        "unknown model .*Did you mean vit_small_patch16_224",
    ),
    (
        "lever",
        lambda p: p.fit(levers="head"),
        SETTING,
        r"unknown lever 'head'. Did you mean 'heads'\? Known: groups, heads",
    ),
    ("backend", lambda p: p.fit(backends="pytorch"), SETTING, "unknown backend 'pytorch'.*Known: .*torch"),
    (
        "refusal",
        lambda p: p.fit(model="test_efficientnet", levers="heads"),
        SETTING,
        "no lever that was named applies: .*not timm's VisionTransf",
    ),
    (
        "recipe",
        lambda p: p.fit(recipe="scratch-tin"),
        SETTING,
        "unknown recipe 'scratch-tin'. Did you mean 'scratch-tiny'",
    ),
    ("recipe file", lambda p: p.fit(recipe="no.toml"), SETTING, r"the recipe no\.toml cannot be read: No such file"),
    ("recipe text", lambda p: p.fit(recipe=p.file("r.json", "{")), SETTING, r"r\.json is not valid JSON"),
    (
        "recipe key",
        lambda p: p.fit(recipe=p.file("r.json", '{"lrr": 1}')),
        SETTING,
        "unknown key 'lrr'. Did you mean 'lr'",
    ),
    ("recipe value", lambda p: p.fit(recipe=p.file("r.json", '{"lr": -1}')), SETTING, "lr must be a number from 1e-09"),
    ("time", lambda p: p.fit(time="soon"), SETTING, "cannot read the time 'soon'. Write it like 90s, 20m or 1h30m"),
    ("too short", lambda p: p.fit(time="1s"), SETTING, "the time '1s' is over before training begins. Allow more"),
    ("threads", lambda p: p.fit(threads=0), SETTING, "threads must be at least 1, not 0"),
    ("epochs", lambda p: p.fit(epochs=0), SETTING, "epochs must be above 0, not 0"),
    ("seed", lambda p: p.fit(seed=-1), SETTING, "seed must not be negative: -1"),
    ("out", lambda p: p.fit(out=p.file("taken", "x")), SETTING, "taken is a file. Choose another --out"),
    (
        "no model",
        lambda p: p.fit(model=None, weights="w.pth"),
        SETTING,
        "weights 'w.pth' belong to a model: name it with",
    ),
    ("no weights", lambda p: p.fit(weights="w.pth"), BUNDLE, r"w\.pth: no such file"),
    (
        "damaged",
        lambda p: p.fit(weights=p.file("w.safetensors", "x")),
        BUNDLE,
        r"w\.safetensors is damaged, or no safeten",
    ),
    ("others", lambda p: p.fit(weights=other_weights(p)), BUNDLE, r"other\.safetensors"),
    ("no pretrained", lambda p: p.fit(weights="pretrained"), SETTING, "hydravit_tiny_patch2_8"),
    (
        "measure",
        lambda p: anyvit.measure("vit_tinny_patch16_224"),
        SETTING,
        "unknown model .*Did you mean vit_tiny_patch16",
    ),
    ("batch", lambda p: anyvit.measure(TINY, batch=0), SETTING, "batch 0 must be at least 1"),
    ("kind", lambda p: anyvit.list("lever s"), SETTING, "unknown kind 'lever s'. Did you mean 'levers'"),
    ("format", lambda p: anyvit.export(str(p.bundle), format="tflite"), SETTING, "unknown format 'tflite'"),
    (
        "suffix",
        lambda p: anyvit.export(str(p.bundle), out="model.pt"),
        SETTING,
        r"model\.pt must end in \.onnx for the form",
    ),
    (
        "top",
        lambda p: anyvit.predict(str(p.bundle), [str(p.photos)], top_k=0),
        SETTING,
        "top_k is 0: it must be at least",
    ),
    ("system", lambda p: anyvit.load_reference("hydravits", {}), SETTING, "unknown system 'hydravits'. Did you mean"),
]

BUNDLES: list[Case] = [
    ("none", lambda p: anyvit.load(p.folder / "no"), BUNDLE, "no does not exist: name the folder that `anyvit fit`"),
    (
        "file",
        lambda p: anyvit.load(p.file("x", "")),
        BUNDLE,
        "x is a file: name the folder that `anyvit fit` has written",
    ),
    ("other folder", lambda p: anyvit.load(p.folder), BUNDLE, r"place is no bundle: it has no bundle\.json"),
    (
        "newer",
        lambda p: anyvit.load(p.document(schema=99)),
        BUNDLE,
        r"has schema 99, newer than this AnyViT reads \(1\)",
    ),
    ("no schema", lambda p: anyvit.load(p.document(schema=None)), BUNDLE, "is damaged: it names no schema"),
    ("chosen", lambda p: anyvit.load(p.document(chosen="heads9")), BUNDLE, "unknown candidate 'heads9'"),
    ("json", lambda p: anyvit.load(p.damage("bundle.json")), BUNDLE, r"bundle\.json is damaged"),
    (
        "weights",
        lambda p: anyvit.load(p.damage("weights-*")),
        BUNDLE,
        r"weights-\w+\.safetensors is damaged: its SHA-256",
    ),
    (
        "images",
        lambda p: anyvit.evaluate(p.damage("training-images-*")),
        BUNDLE,
        r"training-images-\w+\.safetensors is dam",
    ),
]

IMAGES: list[Case] = [
    ("none", lambda p: anyvit.predict(str(p.bundle), []), DATA, "no images named. Name files, folders, patterns"),
    ("pattern", lambda p: anyvit.predict(str(p.bundle), ["no*.jpg"]), DATA, r"no\*\.jpg matches no image"),
    ("folder", lambda p: anyvit.predict(str(p.bundle), [str(p.folder)]), DATA, "place holds no images"),
    ("stdin", lambda p: anyvit.predict(str(p.bundle), ["-", "a"]), DATA, "is one image and cannot be mixed with files"),
    (
        "corrupt",
        lambda p: anyvit.predict(str(p.bundle), p.file("a.png", "")),
        DATA,
        "none of 1 images can be read: .*empty",
    ),
    ("class", strange_class, DATA, "the model does not know class eleven of .*rename what is the same"),
]

TABLE = {"data": DATA_SETS, "budget": BUDGETS, "argument": ARGUMENTS, "bundle": BUNDLES, "images": IMAGES}


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [pytest.param(*case, id=f"{kind}: {name}") for kind, cases in TABLE.items() for name, *case in cases],
)
def test_bad_input_is_answered(place, call, status, words):
    with pytest.raises(AnyViTError, match=words) as caught:
        call(place)
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)
    assert not (place.folder / "out").exists()
