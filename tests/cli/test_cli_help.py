"""Help, version and recipes: quick, without torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mogu import __version__
from mogu.cli.main import app
from mogu.recipe import load_recipe, recipe_names

COMMANDS = [
    "harden",
    "demo",
    "chat",
    "generate",
    "evaluate",
    "train",
    "data build",
    "mix",
    "probe",
    "runs",
    "push",
    "import",
    "recipes show",
    "recipes launch",
    "judge label",
    "judge calibrate",
]
_CHECK = """
import sys
from mogu.cli.main import app
try:
    app(sys.argv[1:], prog_name="mogu")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "peft", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["--version"], ["recipes"], ["harden", "--help"], ["data"], ["runs", "."]]
)
def test_light_commands_load_no_heavy_library(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-c", _CHECK, *arguments], check=True, stdout=subprocess.PIPE)


def commands(group: typer.Typer = app) -> Iterator[Callable[..., Any]]:
    yield from (one.callback for one in group.registered_commands if one.callback is not None)
    for one in group.registered_groups:
        assert one.typer_instance is not None
        yield from commands(one.typer_instance)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.__name__)
def test_every_option_does_something(command: Callable[..., Any]) -> None:
    """But ``--config``, which is read before the command begins."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    used = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
    assert set(inspect.signature(command).parameters) - used <= {"config"}


def test_script_is_installed() -> None:
    done = subprocess.run([sys.executable, "-c", "from mogu.cli.main import main; main()"], capture_output=True)
    assert done.returncode == 0
    assert b"mogu demo" in done.stdout


def test_version(run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"mogu {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_takes_a_configuration(run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "--config" in result.stdout


def test_bare_mogu_shows_every_command(run) -> None:
    shown = run().stdout
    for command in COMMANDS:
        assert command.split()[0] in shown


def test_recipes_are_listed_with_their_description(run) -> None:
    lines = run("recipes").stdout.splitlines()
    assert lines[0].split() == ["recipe", "description"]
    listed = lines[1 : lines.index("")]
    assert [line.split(maxsplit=1) for line in listed] == [
        [name, load_recipe(name).description] for name in recipe_names()
    ]


def test_launch_configurations_are_named_and_have_paths(run) -> None:
    names = ["cpu", "ddp", "deepspeed", "fsdp"]
    assert run("recipes").stdout.splitlines()[-1].endswith(": " + ", ".join(names))
    assert not set(names) & set(recipe_names())
    for name in names:
        file = Path(run("recipes", "launch", name).stdout.strip())
        assert file.read_text().startswith("# ")
        assert yaml.safe_load(file.read_text())["compute_environment"] == "LOCAL_MACHINE"


@pytest.mark.parametrize("name", recipe_names())
def test_a_shown_recipe_can_be_used_as_a_file(run, name: str, tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(run("recipes", "show", name).stdout)
    assert load_recipe(file) == load_recipe(name)
