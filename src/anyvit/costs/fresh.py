"""A function called in a new process, so that what ran before in this one changes neither its speed nor its memory.

It needs no main guard and works from notebooks: the process is a plain `python -m anyvit.costs.fresh`, told by JSON
files which function to call and where its answer goes; what it prints stays apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from anyvit.errors import AnyViTError, retold, told

Json = Any
"""What `json.dumps` takes: None, booleans, finite numbers, text, and lists and dictionaries of them."""

_LINES_OF_A_FAILURE = 15


def call_in_new_process(target: str, argument: Json = None) -> Json:
    """Call the function `target`, "module:function", with `argument` in a new process and return its answer.

    Modules are found as they are here: the new process has this one's `sys.path`, working directory and environment.
    Ctrl-C ends both processes.

    Raises:
        AnyViTError: The one that the function raised, class and words; or, where it failed otherwise, one that quotes
            the last lines of its output.
    """
    with tempfile.TemporaryDirectory(prefix="anyvit-") as folder:
        question, answer, output = Path(folder, "question"), Path(folder, "answer"), Path(folder, "output")
        question.write_text(json.dumps({"target": target, "argument": argument}), encoding="utf-8")
        with output.open("wb") as file:  # a pipe would wait for whatever the function leaves running
            child = subprocess.Popen(
                new_python("anyvit.costs.fresh", str(question), str(answer)),
                env=same_paths(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                status = child.wait()
            finally:  # Ctrl-C above all
                child.kill()
                child.wait()
        if not answer.exists():
            raise AnyViTError(_failure(target, status, output.read_text(encoding="utf-8", errors="replace")))
        outcome = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise retold(*outcome["error"])
    return outcome["answer"]


def new_python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a new process of this Python; `same_paths` is its environment."""
    # -P: a queue.py in the working directory must not hide the library's
    return [sys.executable, "-P", "-m", module, *arguments]


def same_paths() -> dict[str, str]:
    """An environment in which modules are found as they are here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def resolve(target: str) -> Any:
    """The function that "module:function" names."""
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)


def _failure(target: str, status: int, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-_LINES_OF_A_FAILURE:]
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} and no answer"
    cause = " (the system kills processes when memory runs out)" if status == -9 else ""
    return "\n".join([f"{target} {how} in a new process{cause}", *lines])


def _main(question: Path, answer: Path) -> None:
    asked = json.loads(question.read_text(encoding="utf-8"))
    try:
        outcome = {"answer": resolve(asked["target"])(asked["argument"])}
    except AnyViTError as error:
        outcome = {"error": told(error)}
    half = answer.with_suffix(".half")
    half.write_text(json.dumps(outcome, allow_nan=False), encoding="utf-8")
    half.rename(answer)  # an answer that is there is whole


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
