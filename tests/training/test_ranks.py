import pytest
import torch

from anyvit.errors import SettingError
from anyvit.training.ranks import agreed, count, joined, most, rank, shared


def test_one_process_agrees_with_itself():
    assert (rank(), count()) == (0, 1)
    value = object()
    assert agreed(lambda: value) is value
    assert shared(lambda: value) is value
    assert most(1, False) == [1, False]


def test_nobody_joins_whom_torchrun_has_not_started(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingError, match="started by torchrun"), joined():
        pass


def deciding():
    """In each of several processes."""
    with joined():
        assert agreed(lambda: {"rank": rank(), "third": 1 / 3}) == {"rank": 0, "third": 1 / 3}
        assert most(rank(), -rank(), rank() == 1) == [count() - 1, 0, 1]
        tensors = shared(lambda: {"place": torch.tensor([rank()], dtype=torch.bfloat16), "plain": (1, None)})
        assert torch.equal(tensors["place"], torch.zeros(1, dtype=torch.bfloat16))
        assert tensors["plain"] == (1, None)
        with pytest.raises(SettingError, match="too much"):
            agreed(refusing)


def refusing():
    raise SettingError("too much")


def test_what_the_first_process_decides_holds_for_all(processes):
    processes.run(2, deciding)
