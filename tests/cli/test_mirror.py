"""A command is the function of the same name: the same arguments, in the same order, with the same defaults."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import anyvit
from anyvit.cli import app

COMMANDS = {command.callback.__name__: command.callback for command in app.registered_commands}
commands = pytest.mark.parametrize("name", COMMANDS)

HOW_TO_SHOW = ("json", "csv")
HEAVY = ("torch", "numpy", "timm", "lightning", "PIL", "sklearn", "onnx", "pyarrow", "matplotlib")


def arguments(function, *, without=()):
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default) for parameter in parameters if parameter.name not in without]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@commands
def test_command_mirrors_its_function(name):
    expected = arguments(getattr(anyvit, name), without=("progress",))
    assert arguments(COMMANDS[name], without=HOW_TO_SHOW) == expected


@commands
def test_types_are_those_of_the_function(name):
    ours, theirs = (
        inspect.signature(each, eval_str=True).parameters for each in (COMMANDS[name], getattr(anyvit, name))
    )
    for parameter in set(theirs) - {"progress"}:
        told = getattr(ours[parameter].annotation, "__origin__", ours[parameter].annotation)
        wanted = theirs[parameter].annotation
        assert told == wanted or (told == list[str] and "Sequence" in str(wanted)), parameter


@commands
def test_at_most_fourteen_options(name):
    command = typer.main.get_command(app).commands[name]
    assert len([each for each in command.params if each.param_type_name == "option"]) <= 14


@commands
def test_help_describes_the_command_and_every_option(name):
    shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    first_line = inspect.getdoc(COMMANDS[name]).partition("\n")[0]
    assert first_line in " ".join(shown.output.split())
    for parameter in typer.main.get_command(app).commands[name].params:
        if parameter.name != "help":
            assert parameter.help, parameter.name
            assert parameter.opts[0].upper().lstrip("-") in shown.output.upper()


def test_every_function_that_is_a_job_has_its_command():
    jobs = {name for name, home in anyvit._HOMES.items() if home.startswith("anyvit.jobs.")}
    assert set(COMMANDS) == jobs


def test_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    assert all(f" {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize(
    "code",
    [
        "import anyvit, sys",
        "import anyvit.cli, sys",
        "import sys; sys.argv = ['anyvit', '--help']; from contextlib import suppress\n"
        "with suppress(SystemExit): __import__('anyvit.cli').cli.main()",
        "import sys; sys.argv = ['anyvit', 'fit', '--help']; from contextlib import suppress\n"
        "with suppress(SystemExit): __import__('anyvit.cli').cli.main()",
    ],
    ids=["import", "commands", "help", "help of a command"],
)
def test_nothing_heavy_is_loaded(code):
    loaded = run_python(f"{code}\nprint('LOADED', *(name for name in {HEAVY} if name in sys.modules))")
    assert loaded.splitlines()[-1].split() == ["LOADED"]


def test_public_functions_are_there_and_documented():
    assert set(anyvit.__all__) <= set(dir(anyvit))
    for name in anyvit.__all__:
        assert inspect.getdoc(getattr(anyvit, name)), name
    with pytest.raises(AttributeError, match="module 'anyvit' has no attribute 'fitt'"):
        anyvit.fitt  # noqa: B018
