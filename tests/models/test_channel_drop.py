"""Widths by example: how many are drawn from, how a batch shares them, and what is refused."""

import pytest
import torch

from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.channel_drop import ChannelDrop, prefix_mask


def test_the_widest_comes_first_and_duplicates_count():
    drop, usable = ChannelDrop([0, 8, 0, 8], 8), []
    for epoch in range(8):
        drop.set_epoch(epoch, warmup_epochs=6)
        usable.append(drop.usable)
    assert usable == [1, 1, 2, 2, 3, 3, 4, 4]
    assert drop.widths == (8, 8, 0, 0)
    drop.set_epoch(0, warmup_epochs=0)
    assert drop.usable == 4


def test_examples_share_architectures_in_turn():
    drop = ChannelDrop([6, 4, 2], 6, examples_per_arch=3)
    drop.set_epoch(9, warmup_epochs=9)
    torch.manual_seed(0)
    kept = drop.draw(12)
    assert torch.equal(kept, kept[:4].repeat(3))
    assert sorted(drop.table(12).tolist()) == [2, 2, 4, 4, 6, 6]
    single = ChannelDrop([6, 4, 2], 6, single_arch=True)
    single.set_epoch(9, warmup_epochs=9)
    assert len(single.draw(12).unique()) == 1


def test_every_object_draws_for_itself_and_from_the_generator_alone():
    drops = [ChannelDrop(range(1, 9), 8) for _ in range(2)]
    for drop in drops:
        drop.set_epoch(1, warmup_epochs=1)
    torch.manual_seed(1)
    first = [drop.draw(16) for drop in drops]
    torch.manual_seed(1)
    again = [drop.draw(16) for drop in drops]
    assert not torch.equal(*first)
    assert torch.equal(torch.stack(first), torch.stack(again))


def test_prefix_masks():
    mask = prefix_mask(torch.tensor([3, 0]), 4)
    assert mask.int().tolist() == [[[1, 1, 1, 0]], [[0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("widths", "batch", "error", "words"),
    [
        ([4, 2], 9, SettingError, "batch size 9 not divisible by examples per architecture 2"),
        ([4, 3, 2, 1], 2, SettingError, r"batch size 2 is below the 4 widths \[4, 3, 2, 1\]"),
        ([3, 2], 8, ModelError, r"widths \[3, 2\] must be from 0 to the 4 channels there are, all 4 among them"),
        ([5, 4], 8, ModelError, r"widths \[5, 4\] must be from 0 to the 4 channels"),
        ([], 8, ModelError, r"widths \[\] must be"),
    ],
)
def test_what_cannot_be_is_refused(widths, batch, error, words):
    with pytest.raises(error, match=f"^{words}"):
        ChannelDrop(widths, 4, examples_per_arch=2).draw(batch)
