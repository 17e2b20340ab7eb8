"""Runs commands in processes that can be killed: `python -m tests.jobs.child` reads a JSON list of words a line.

Each line forks a process that runs that command; its number is printed at once, its exit status when it has ended.
A first word `kill at STEP` makes the process kill itself when a run comes there.
"""

import json
import os
import signal
import sys

import torch

from anyvit import cli
from anyvit.jobs import plan, run_folder, searching, steps
from tests.conftest import HASTY

STEPS = {
    "score": (searching, "answers_of"),
    "write": (steps, "write_bundle"),
    "report": (steps, "write_report"),
    "finish": (run_folder, "remove_checkpoints"),
}


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(words: list[str]) -> int:
    torch.set_num_threads(1)
    plan.GLANCE = plan.RANKING = searching.RANKING = HASTY
    if words[0].startswith("kill at "):
        setattr(*STEPS[words.pop(0).removeprefix("kill at ")], die)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.argv = ["anyvit", *words]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(run(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
