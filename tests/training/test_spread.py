"""A training that several processes share ends like that of one. What each of them does is in spreading.py."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from anyvit.training.checkpoint import read_checkpoint
from tests.training import spreading


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    """A training in one process, without torchrun: its result, and its checkpoint."""
    folder = tmp_path_factory.mktemp("alone")
    processes.run(1, spreading.alone, folder)
    return load_file(folder / "result-0.safetensors"), read_checkpoint(folder / "run")


def assert_same(folder, size, uninterrupted):
    for rank in range(size):
        result = load_file(folder / f"result-{rank}.safetensors")
        torch.testing.assert_close(result, uninterrupted[0], rtol=1e-5, atol=1e-5)


def assert_same_checkpoint(checkpoint, expected):
    """The same names, shapes and numbers: any number of processes can go on from either."""
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(checkpoint[part], expected[part], rtol=1e-4, atol=1e-5)
    assert checkpoint["global_step"] == expected["global_step"]
    names = [{name for name in entry if name != "seconds"} for entry in checkpoint["callbacks"]["run"]["history"]]
    assert names == [{name for name in entry if name != "seconds"} for entry in expected["callbacks"]["run"]["history"]]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "trunk", "rows"), [(2, "boards", 1), (3, "hub", 1), (4, "boards", 2), (4, "hub", 2)])
def test_it_ends_like_that_of_one_process(processes, uninterrupted, tmp_path, size, trunk, rows):
    processes.run(size, spreading.whole, tmp_path, trunk, rows)
    assert_same(tmp_path, size, uninterrupted)
    assert_same_checkpoint(read_checkpoint(tmp_path / "run"), uninterrupted[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "pressed", "resume"),
    [
        (signal.SIGTERM, 2, (2, spreading.whole, "hub")),
        (signal.SIGINT, 0, (1, spreading.alone)),
        (signal.SIGTERM, 0, (4, spreading.whole, "boards", 2)),
    ],
    ids=["on two", "on one", "in two rows"],
)
def test_four_processes_stop_together_and_others_go_on(processes, uninterrupted, tmp_path, number, pressed, resume):
    processes.run(4, spreading.stopped, tmp_path, int(number), pressed)
    assert read_checkpoint(tmp_path / "run")["global_step"] == 9
    size, how, *layout = resume
    processes.run(size, how, tmp_path, *layout)
    assert_same(tmp_path, size, uninterrupted)


@pytest.mark.slow
def test_the_clock_of_each_process_is_heard(processes, tmp_path):
    processes.run(2, spreading.by_the_clock, tmp_path)
    one, other = (load_file(tmp_path / f"result-{rank}.safetensors") for rank in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("what", [spreading.diverging, spreading.failing, spreading.unlike, spreading.half_precision])
def test_no_process_waits_for_another_in_vain(processes, tmp_path, what):
    processes.run(2, what, tmp_path)


@pytest.mark.slow
def test_a_lost_process_is_noticed(processes, tmp_path):
    processes.start(2, spreading.killed, tmp_path)
    assert processes.statuses() == [0, -signal.SIGKILL]
    assert (tmp_path / "said").exists()
