"""The folder of a run: what it was asked, what it has decided, and its training state.

`OUT/run/` lies inside the folder of the bundle. The same `--out` with the same arguments resumes; with others it is
refused. Decisions that rest on a measurement (which model, what candidates cost) are made once and kept, so that a
resumed run takes the same way as an uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from anyvit.deploy.document import DOCUMENT, REMEDY
from anyvit.errors import AnyViTError, BundleError, Interrupted, SettingError
from anyvit.files import write_text
from anyvit.training.checkpoint import remove_checkpoints

ARGUMENTS = "arguments"
TUNING = "tuning"


class RunFolder(AbstractContextManager["RunFolder"]):
    """Opens or resumes a run in the folder `out`, for this process alone. It ends with `document` in there.

    A run that ends before anything was decided, or is refused before it has trained, leaves nothing behind.

    Raises:
        SettingError: Another process works in `out`, or `out` is or holds something else.
    """

    def __init__(self, out: Path, arguments: Mapping[str, Any], document: str = DOCUMENT) -> None:
        self.out = out
        self.document = out / document
        self.path = out / "run"
        if out.is_file():
            raise SettingError(f"{out} is a file. Choose another --out.")
        is_new = not self.path.exists()
        if is_new and out.exists() and any(out.iterdir()):
            raise SettingError(f"{out} holds something that is no run. Choose another --out.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SettingError(
                f"{out} is being written by another run. Wait for it, or choose another --out."
            ) from None
        try:
            self._refuse_others(self.remember(ARGUMENTS, lambda: dict(arguments)), arguments)
        except BaseException:
            self._lock.release()
            raise

    def _refuse_others(self, before: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        changed = [name for name in arguments if before.get(name) != arguments[name]]
        if changed:
            words = ", ".join(f"{name} {before.get(name)!r} (not {arguments[name]!r})" for name in changed)
            raise SettingError(
                f"{self.out} holds a run with {words}. Choose another --out, or repeat that run's arguments."
            )

    @property
    def finished(self) -> bool:
        """Has the run ended, with a whole bundle and its report? What it has decided is removed last of all."""
        if self._decided() or not self.document.exists():
            return False
        try:
            return bool(json.loads(self.document.read_text())["finished"])
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{self.document} is damaged ({error}). {REMEDY}") from error

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value kept under `name`; made and kept now where there is none."""
        file = self.path / f"{name}.json"
        if not file.exists():
            write_text(file, json.dumps(make(), indent=2))
        return json.loads(file.read_text())

    def recall(self, name: str) -> Any:
        """The JSON value kept under `name`, or None."""
        file = self.path / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def keep(self, name: str, value: Any) -> None:
        """Keep a JSON value under `name`, in the place of the one that was there."""
        write_text(self.path / f"{name}.json", json.dumps(value, indent=2))

    def finish(self) -> None:
        """Remove what a resumed run would have needed. The arguments and the logs stay."""
        for file in self._decided():  # before the checkpoints: a crash in between must not train again
            file.unlink()
        remove_checkpoints(self.path)
        shutil.rmtree(self.path / TUNING, ignore_errors=True)

    def _decided(self) -> list[Path]:
        return [*self.path.glob("plan-*.json"), *self.path.glob("measured-*.json")]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._lock.release()
        self._tidy(error)
        if kind is KeyboardInterrupt:
            raise Interrupted("stopped. The same command goes on from there.") from None

    def _tidy(self, error: BaseException | None) -> None:
        """Leave nothing of a run that came to nothing."""
        if error is not None and (self._refused(error) or not self._decided()) and not self.finished:
            shutil.rmtree(self.path)
            if not any(self.out.iterdir()):
                self.out.rmdir()

    def _refused(self, error: BaseException) -> bool:
        """Was the run refused before it had trained? What it asked for is then to be corrected."""
        is_refusal = isinstance(error, AnyViTError) and not isinstance(error, Interrupted)
        return is_refusal and not any(self.path.glob("*.ckpt"))


class FollowedFolder(RunFolder):
    """The folder of a run in a process that follows the first one, which decides and writes: nothing is kept here."""

    def __init__(self, out: Path) -> None:
        self.out, self.path, self.document = out, out / "run", out / DOCUMENT

    def finish(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        pass
