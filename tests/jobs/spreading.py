"""Commands in several processes: run by tests.processes."""

import os
import sys
from pathlib import Path

from anyvit import cli
from anyvit.jobs import plan
from tests.conftest import HASTY


def command(folder, *words):
    """`anyvit WORDS`. What each process prints, and its exit status, lie in the folder."""
    plan.GLANCE = plan.RANKING = HASTY
    place = os.environ["RANK"]
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        os.dup2(os.open(Path(folder) / f"{name}-{place}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.argv = ["anyvit", *words]
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    sys.stdout.flush()
    (Path(folder) / f"status-{place}").write_text(str(status))
