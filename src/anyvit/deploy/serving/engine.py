"""The process that computes: it holds the model, and answers one batch after the other until its front has ended.

    python -m anyvit.deploy.serving.engine        # started by engine_link.py, which speaks to it over standard input

Whatever a runtime does to its process, it does it here: the front lives on and starts another engine.

    front                                            engine
    {"open": FOLDER, "candidates": IDS, "memory": B} ->
                                                     <- {"loading": ID}, for each
                                                     <- {"resident": IDS, "left_out": {ID: WHY}, "bytes": B}
    {"keep": IDS}, the others are released           ->
                                                     <- {"bytes": B}
    {"run": ID, "images": N}, pixels                 ->
                                                     <- {"seconds": S}, probabilities
                                                     <- {"failed": [CLASS, WORDS]}, in the place of either
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from anyvit.costs.memory import resident_memory
from anyvit.deploy.prediction import Answering, Asking
from anyvit.deploy.runtime import load
from anyvit.deploy.serving import frames
from anyvit.deploy.serving.garbage import spare_what_is_there
from anyvit.errors import AnyViTError, ModelError, told
from anyvit.scaling.candidate import Cascade, Result


class Model:
    """The candidates that are held, ready to answer."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self._asking: dict[str, Asking] = {}
        self._worst: dict[str, Asking] = {}

    @property
    def resident(self) -> list[str]:
        """Their ids."""
        return list(self._asking)

    def hold(self, result: Result, limit: float) -> str | None:
        """Make a candidate ready and let it answer once.

        Returns:
            None, or the reason why it is not held: it cannot be built here, or needs memory beyond `limit` bytes (but
            one candidate is held whatever it needs).
        """
        try:
            ask = self.answering.asking(result)
            ask(self._noise())()
        except AnyViTError as error:
            return f"it cannot be built: {error}"
        used = resident_memory()
        if used > limit and self._asking:
            self.answering.release(result)
            return f"memory: {used / 1e6:.0f} MB with it, and {limit / 1e6:.0f} MB are allowed"
        self._asking[result.id] = ask
        if isinstance(result.candidate, Cascade):
            self._worst[result.id] = self.answering.asking(result, worst=True)
        return None

    def keep(self, ids: Collection[str]) -> None:
        """Release the other candidates."""
        for result in self.answering.results:
            if result.id in self._asking and result.id not in ids:
                self.answering.release(result)
                del self._asking[result.id]
                self._worst.pop(result.id, None)

    def answer(self, id: str, pixels: Tensor, *, worst: bool = False) -> Tensor:
        """Probabilities (B, K), float32, for pixels (B, 3, S, S)."""
        ask = self._worst.get(id) if worst else None
        probabilities, _ = (ask or self._asking[id])(pixels)()
        return probabilities.float().contiguous()

    def _noise(self) -> Tensor:
        side = self.answering.preprocessing.image_size
        return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)


def main() -> None:
    """Answer until standard input ends."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    opening = frames.read(questions)
    if opening is None:
        return
    try:
        model = _open(opening[0], answers)
    except AnyViTError as error:
        _say(answers, {"failed": told(error)})
        return
    spare_what_is_there()
    with model.answering:
        while question := frames.read(questions):
            _say(answers, *_answer(model, *question))


def _open(opening: Mapping[str, Any], answers: BinaryIO) -> Model:
    answering = load(opening["open"])
    model, left_out = Model(answering), {}
    by_id = {result.id: result for result in answering.results}
    for id in opening["candidates"]:
        _say(answers, {"loading": id})
        if why := model.hold(by_id[id], opening["memory"]):
            left_out[id] = why
    if not model.resident:
        raise ModelError("; ".join(f"{id}: {why}" for id, why in left_out.items()))
    _say(answers, {"resident": model.resident, "left_out": left_out, "bytes": resident_memory()})
    return model


def _answer(model: Model, words: Mapping[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    if "keep" in words:
        model.keep(words["keep"])
        gc.unfreeze()  # so that the released are collected
        spare_what_is_there()
        return {"bytes": resident_memory()}, b""
    side = model.answering.preprocessing.image_size
    pixels = torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(words["images"], side, side, 3)
    begun = time.perf_counter()
    try:
        answer = model.answer(words["run"], pixels.permute(0, 3, 1, 2), worst=words.get("worst", False))
    except AnyViTError as error:
        return {"failed": told(error)}, b""
    except Exception as error:  # of any kind: it belongs to this batch, and others go on
        return {"failed": ("AnyViTError", f"{type(error).__name__}: {error}")}, b""
    return {"seconds": time.perf_counter() - begun}, answer.numpy().tobytes()


def _say(answers: BinaryIO, words: Mapping[str, Any], payload: bytes = b"") -> None:
    answers.write(frames.pack(words, payload))
    answers.flush()


if __name__ == "__main__":
    main()
