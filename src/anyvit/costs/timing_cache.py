"""Latencies that were measured before, on disk: by device and versions, backend, conditions and shape."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from anyvit.costs.timing import MAX_SPREAD, Latency
from anyvit.errors import AnyViTError
from anyvit.files import write_text

Key = Mapping[str, Any]
"""What a latency belongs to, as plain data. `device` is a fingerprint, and versions are in it."""


def default_folder() -> Path:
    """$ANYVIT_CACHE, or else `anyvit` in the user's folder for caches."""
    if named := os.environ.get("ANYVIT_CACHE"):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "anyvit"


class TimingCache:
    """Keeps latencies in a file a device, a line each. Several processes may use one folder.

    Only speed hangs on it: a file or a line that cannot be read or written is told, and measured again.

    Args:
        folder: Of the files; None: `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self._known: dict[str, dict[str, Latency]] = {}

    def get(self, key: Key) -> Latency | None:
        """What was measured; where it is `unstable`, it is worth measuring again."""
        device = key["device"]
        if device not in self._known:
            self._known[device] = self._read(device)
        return self._known[device].get(_text(key))

    def put(self, key: Key, latency: Latency) -> Latency:
        """Keep a latency. What is kept is given: an earlier one where that was better.

        A steady one is better than an unstable one, and of two alike the faster, for contention only adds time. But an
        unstable one that was far faster shows that the steady one was held up.
        """
        device, name = key["device"], _text(key)
        path = self._path(device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                known = self._read(device)  # another process may have written meanwhile
                known[name] = better(known[name], latency) if name in known else latency
                lines = [json.dumps({"key": json.loads(text), **one.to_json()}) for text, one in known.items()]
                write_text(path, "\n".join(lines) + "\n")
        except (OSError, AnyViTError) as error:
            logging.getLogger("anyvit").warning("timings are not kept in %s: %s", self.folder, error)
            known = {**self._known.get(device, {}), name: latency}
        self._known[device] = known
        return known[name]

    def _path(self, device: str) -> Path:
        return self.folder / f"timings-{device}.jsonl"

    def _read(self, device: str) -> dict[str, Latency]:
        path = self._path(device)
        known: dict[str, Latency] = {}
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        except OSError as error:
            logging.getLogger("anyvit").warning("%s cannot be read: %s", path, error)
            return known
        damaged = 0
        for line in lines:
            try:
                data = json.loads(line)
                key = data.pop("key")
                known[_text(key)] = Latency.from_json(data)
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged += 1
        if damaged:
            logging.getLogger("anyvit").warning(
                "%d of %d timings in %s are damaged: they are measured again", damaged, len(lines), path
            )
        return known


def better(one: Latency, other: Latency) -> Latency:
    """Which of two measurements of the same thing to believe."""
    if one.unstable == other.unstable:
        return min(one, other, key=lambda latency: latency.seconds)
    shaky, steady = (one, other) if one.unstable else (other, one)
    return steady if steady.seconds <= shaky.seconds * (1 + MAX_SPREAD) else shaky


def _text(key: Key) -> str:
    """The same for equal keys, whatever their order."""
    return json.dumps(key, sort_keys=True)
