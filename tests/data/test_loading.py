"""Batches are a function of seed and position; damaged images do not end a run."""

from itertools import islice

import numpy as np
import pytest
import torch

from anyvit.data.augmentation import Augmentation
from anyvit.data.dataset import Split
from anyvit.data.images import ArrayImages, BytesImages
from anyvit.data.loading import evaluation_batches, steps_per_epoch, training_loader
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError, SettingError
from tests.data.conftest import encoded, picture

STRONG = Augmentation(crop_scale=(0.5, 1.0), mirror=True, rand_augment=9, erasing=0.5, padding_crop=1)
PREPROCESSING = Preprocessing(8)


@pytest.fixture
def split():
    arrays = [np.asarray(picture(i)) for i in range(11)]
    return Split(ArrayImages(arrays, [str(i) for i in range(11)]), np.arange(11))


def stream(split, *, start=0, count=8, seed=3, batch_size=4, workers=0, augmentation=STRONG, share=(0, 1)):
    loader = training_loader(
        split,
        PREPROCESSING,
        augmentation,
        batch_size=batch_size,
        seed=seed,
        position=lambda: start,
        workers=workers,
        share=share,
    )
    return list(islice(loader, count))


def assert_same(batches, others):
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5])
def test_a_stream_from_any_position_is_the_tail_of_the_whole(split, workers, start):
    assert_same(stream(split, start=start, count=8 - start, workers=workers), stream(split)[start:])


def test_position_is_read_when_an_iteration_starts(split):
    now = {"step": 0}
    loader = training_loader(
        split, PREPROCESSING, STRONG, batch_size=4, seed=3, position=lambda: now["step"], workers=0
    )
    now["step"] = 3
    assert_same(list(islice(loader, 2)), stream(split)[3:5])


def test_an_epoch_shows_no_image_twice_and_each_epoch_its_own_order(split):
    assert steps_per_epoch(split, 4) == 2
    labels = [labels.tolist() for _, labels in stream(split)]
    for first, second in zip(labels[::2], labels[1::2], strict=True):
        assert len({*first, *second}) == 8
    assert len({tuple(batch) for batch in labels}) == 8


def test_another_seed_is_another_stream(split):
    assert [y.tolist() for _, y in stream(split, seed=4)] != [y.tolist() for _, y in stream(split)]


def test_fewer_images_than_a_batch_make_one_batch_of_all(split):
    assert steps_per_epoch(split, 64) == 1
    for images, labels in stream(split, batch_size=64, count=3):
        assert sorted(labels.tolist()) == list(range(11))
        assert images.shape == (11, 3, 8, 8)


def test_shares_make_up_the_batches(split):
    whole = [y.tolist() for _, y in stream(split, batch_size=4)]
    shares = [[y.tolist() for _, y in stream(split, batch_size=4, share=(which, 2))] for which in (0, 1)]
    assert [one + other for one, other in zip(*shares, strict=True)] == whole
    with pytest.raises(SettingError, match="batches of 4 images cannot be shared by 3"):
        stream(split, batch_size=4, share=(0, 3))


def test_the_common_generators_are_left_alone(split):
    before = torch.get_rng_state()
    stream(split)
    list(evaluation_batches(split, PREPROCESSING))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_augmentation_training_sees_what_evaluation_sees(split):
    images, labels = stream(split, augmentation=Augmentation(), count=1)[0]
    for image, label in zip(images, labels, strict=True):
        assert torch.equal(image, PREPROCESSING(split.images.load(int(label))))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_the_order_and_the_rest(split, workers):
    batches = evaluation_batches(split, PREPROCESSING, 4, workers)
    for _ in range(2):
        images, labels = zip(*batches, strict=True)
        assert torch.cat(labels).tolist() == list(range(11))
        expected = torch.stack([PREPROCESSING(split.images.load(i)) for i in range(11)])
        assert torch.equal(torch.cat(images), expected)


@pytest.fixture
def damaged():
    contents = [encoded(picture(i)) for i in range(4)]
    contents[1] = contents[1][:150]
    return Split(BytesImages(contents, ["a", "b", "c", "d"]), np.arange(4))


def test_evaluation_leaves_damaged_images_out(damaged):
    with pytest.warns(UserWarning, match=r"b \(.*\) is damaged and left out"):
        labels = [labels.tolist() for _, labels in evaluation_batches(damaged, PREPROCESSING, 1)]
    assert labels == [[0], [2], [3]]


def test_training_replaces_damaged_images(damaged):
    with pytest.warns(UserWarning, match=r"b \(.*\) is damaged: another"):
        _, labels = stream(damaged, count=1)[0]
    assert sorted(labels.tolist()) == [0, 2, 2, 3]


@pytest.mark.filterwarnings("ignore:.* is damaged")
def test_training_ends_where_nothing_can_be_decoded():
    with pytest.raises(DataError, match="no image of the training split can be decoded"):
        stream(Split(BytesImages([b"x", b"y"], ["a", "b"]), np.arange(2)), count=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"rand_augment": 31}, r"rand_augment 31 is outside 0\.\.30"),
        ({"erasing": 2.0}, "erasing 2 is outside"),
        ({"padding_crop": -1}, "padding_crop -1 is negative"),
    ],
)
def test_augmentation_refuses_what_is_out_of_range(arguments, words):
    with pytest.raises(SettingError, match=words):
        Augmentation(**arguments)
