"""The command `anyvit`: one file a command. Each parses, calls the function of the same name, and shows the answer."""

from __future__ import annotations

import os
import sys

import typer

from anyvit.cli.design import design
from anyvit.cli.doctor import doctor
from anyvit.cli.evaluate import evaluate
from anyvit.cli.export import export
from anyvit.cli.fit import fit
from anyvit.cli.list import list as list_command
from anyvit.cli.loadtest import loadtest
from anyvit.cli.measure import measure
from anyvit.cli.predict import predict
from anyvit.cli.quickstart import quickstart
from anyvit.cli.serve import serve
from anyvit.cli.show import complain
from anyvit.cli.shrink import shrink
from anyvit.cli.spread import spread
from anyvit.cli.worker import worker
from anyvit.errors import AnyViTError, Interrupted

app = typer.Typer(
    name="anyvit",
    help="One Vision Transformer, every budget: labelled images and a limit in, a trained ViT that meets it out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    fit,
    shrink,
    design,
    predict,
    quickstart,
    evaluate,
    export,
    measure,
    list_command,
    doctor,
    serve,
    spread,
    worker,
    loadtest,
):
    app.command()(command)


def main() -> None:
    """Run a command; an error meant for the user is one line and an exit status, never a traceback."""
    try:
        app()
    except AnyViTError as error:
        if not error.told:
            complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complain(Interrupted("interrupted."))
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:  # `anyvit list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
