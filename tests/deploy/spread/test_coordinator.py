"""The hub and its boards: together they answer as one process does, and what goes wrong with one costs that one."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra spread")

from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.wire import Message
from anyvit.deploy.spread.worker import Worker
from anyvit.errors import BundleError, SettingError, SpreadError
from tests.deploy.spread.fleet import CLASSES, coordinator, deal, fleet, logits_of, pictures, place


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    with fleet(tmp_path_factory.mktemp("four") / "placed", 4) as running:
        yield running


@pytest.fixture
def running(four):
    """Four boards, all of them well."""
    yield four
    for number in range(1, 5):
        if number not in four.servers:
            four.start(number)
        four.put(number, four.worker(number))


def until(condition, seconds=20.0):
    """Wait for something that takes a moment; how long is not what is tested."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Changed(Worker):
    """A worker whose answers are changed, as messages or as bytes."""

    def __init__(self, part, *, message=lambda message: message, content=lambda content: content):
        super().__init__(part)
        self.message, self.content = message, content

    def answer(self, content):
        honest = Message.from_bytes(super().answer(content))
        return self.content(self.message(honest).to_bytes())


def changed(running, number, **changes):
    part = Part.open(running.placed.folder / f"part-{number}.safetensors")
    running.put(number, Changed(part, **changes))


@pytest.mark.parametrize("trunk", ["hub", "boards"])
@pytest.mark.parametrize("boards", [1, 2, 4])
def test_boards_together_answer_as_one_process(trunk, boards, tmp_path):
    with fleet(tmp_path / "placed", boards, trunk) as running, coordinator(running) as hub:
        answer = hub.ask(pictures(3)).answer()
        torch.testing.assert_close(answer.logits, logits_of(pictures(3)), rtol=0, atol=1e-5)
        assert (answer.voted, answer.of, answer.missing) == (4, 4, {})
        planned = {share.board.name: (3 * share.bytes_in, 3 * share.bytes_out) for share in running.placed.plan.shares}
        assert answer.payload == planned


def test_a_board_that_is_gone_is_left_out_and_comes_back_under_its_name(running):
    with coordinator(running) as hub:
        running.stop(2)
        answer = hub.ask(pictures(2)).answer()
        torch.testing.assert_close(answer.logits, logits_of(pictures(2), (0, 2, 3)), rtol=0, atol=1e-5)
        assert (answer.voted, answer.of) == (3, 4)
        assert answer.missing["board-2"].startswith("UNAVAILABLE")
        assert (answer.known.missing, answer.known.mean, answer.known.worst) == (1, 0.8, 0.75)
        running.start(2)  # a new process at the same address
        until(lambda: not hub.absent())
        assert hub.ask(pictures(2)).answer().voted == 4


FAULTS = {
    "flipped bits": ({"content": lambda content: content[:-1] + bytes([content[-1] ^ 1])}, "DATA_LOSS"),
    "cut short": ({"content": lambda content: content[:-3]}, "INVALID_ARGUMENT"),
    "garbage": ({"content": lambda content: b"garbage"}, "no message of AnyViT"),
    "not finite": ({"message": lambda m: replace(m, tensor=m.tensor * float("nan"))}, "not finite"),
    "wrong shape": ({"message": lambda m: replace(m, tensor=m.tensor[:, :, 1:])}, "an answer of shape"),
    "fewer images": ({"message": lambda m: replace(m, tensor=m.tensor[:1])}, "an answer of shape"),
    "another request": ({"message": lambda m: replace(m, request=m.request ^ 1)}, "an answer of request"),
    "other weights": ({"message": lambda m: replace(m, weights="0" * 64)}, "an answer of weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_board_that_answers_wrongly_is_left_out_until_it_is_well_again(running, fault):
    changes, words = FAULTS[fault]
    with coordinator(running) as hub:
        changed(running, 3, **changes)
        answer = hub.ask(pictures(2)).answer()
        assert words in answer.missing["board-3"]
        torch.testing.assert_close(answer.logits, logits_of(pictures(2), (0, 1, 3)), rtol=0, atol=1e-5)
        running.put(3, running.worker(3))
        until(lambda: hub.ask(pictures(1)).answer().voted == 4)


def test_a_wrong_but_finite_token_is_counted(running):
    """Nothing tells it from a right one: whoever holds a board's token has that board's votes."""
    with coordinator(running) as hub:
        changed(running, 1, message=lambda m: replace(m, tensor=m.tensor.flip(-1)))
        answer = hub.ask(pictures(2)).answer()
        assert answer.voted == 4
        assert (answer.logits - logits_of(pictures(2))).abs().max() > 1e-3


def test_a_slow_board_costs_one_deadline_and_its_late_answer_nothing(running):
    """It is suspended, so the next requests do not wait for it."""
    go_on = threading.Event()
    with coordinator(running, deadline=0.5) as hub:
        changed(running, 4, content=lambda content: go_on.wait(30) and content)
        answer = hub.ask(pictures(2)).answer()
        assert answer.missing == {"board-4": "no answer within the deadline"}
        assert (answer.voted, answer.known.missing) == (3, 1)
        go_on.set()
        running.put(4, running.worker(4))
        until(lambda: not hub.absent())
        later = hub.ask(pictures(2, seed=1)).answer()
        torch.testing.assert_close(later.logits, logits_of(pictures(2, seed=1)), rtol=0, atol=1e-5)


def test_a_board_without_a_sign_of_life_is_not_asked(running):
    class Dumb(Worker):
        def hello(self):
            return b"?"

    with coordinator(running) as hub:
        running.put(2, Dumb(Part.open(running.placed.folder / "part-2.safetensors")))
        until(lambda: "board-2" in hub.absent())
        answer = hub.ask(pictures(1)).answer()
        assert "no card of AnyViT" in answer.missing["board-2"]
        assert set(answer.payload) == {"board-1", "board-3", "board-4"}


def test_a_board_with_another_part_is_named_and_not_asked(running):
    running.put(2, running.worker(1))
    with coordinator(running) as hub:
        reason = hub.ask(pictures(1)).answer().missing["board-2"]
        assert "(made for board-1)" in reason
        assert "start its worker with part-2.safetensors" in reason


def test_another_version_of_the_messages_is_named(running):
    class Newer(Worker):
        def hello(self):
            return super().hello().replace(b'"wire": 1', b'"wire": 2')

    running.put(1, Newer(Part.open(running.placed.folder / "part-1.safetensors")))
    with coordinator(running) as hub:
        assert "speaks version 2 of the messages" in hub.absent()["board-1"]


def test_quorum_is_the_least_number_of_groups(running):
    running.stop(1)
    with coordinator(running, quorum=3) as hub:
        assert hub.ask(pictures(1)).answer().voted == 3
    with (
        coordinator(running, quorum=4, deadline=0.2) as hub,
        pytest.raises(
            SpreadError,
            match=r"0 of 4 answered, and the quorum is 4. Missing: board-1: UNAVAILABLE.*board-2: was not asked",
        ),
    ):
        hub.ask(pictures(1)).answer()
    for quorum in (0, 5):
        with pytest.raises(SettingError, match=f"quorum is {quorum}: it must be from 1 to 4"):
            Coordinator.open(running.placed.folder, quorum=quorum)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("inf"), float("nan")])
def test_deadlines_outside_their_range_are_refused(running, deadline):
    with pytest.raises(SettingError, match="it must be above 0 and finite"):
        Coordinator.open(running.placed.folder, deadline=deadline)


def test_requests_from_many_threads_do_not_mix(running):
    with coordinator(running) as hub:

        def one(seed):
            answer = hub.ask(pictures(1, seed=seed)).answer()
            torch.testing.assert_close(answer.logits, logits_of(pictures(1, seed=seed)), rtol=0, atol=1e-5)
            voted.append(answer.voted)

        voted = []
        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert voted == [4] * 12


def test_nobody_there(tmp_path):
    place(tmp_path / "placed", 2, "boards", ["127.0.0.1:1", "127.0.0.1:2"])
    with (
        Coordinator.open(tmp_path / "placed", deadline=0.1) as hub,
        pytest.raises(SpreadError, match=r"0 of 4 answered.*board-1: UNAVAILABLE.*board-2: UNAVAILABLE"),
    ):
        hub.ask(pictures(1)).answer()


def test_what_is_wrong_is_said_on_opening(tmp_path):
    placed = place(tmp_path / "placed", 2, "hub", ["127.0.0.1:7001", ""])
    with pytest.raises(SettingError, match="board-2 has no address"):
        Coordinator.open(placed.folder)
    with pytest.raises(SettingError, match="unknown transport 'grcp'. Did you mean 'grpc'"):
        Coordinator.open(placed.folder, transport="grcp")
    with pytest.raises(BundleError, match="has no placement.json"):
        Coordinator.open(tmp_path)
    assert (deal(2), placed.classes) == ([[0, 2], [1, 3]], CLASSES)
