"""What README.md tells people to type exists: every command line parses, quick ones run, the Python compiles."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from mogu.cli.main import app
from mogu.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
QUICK = {"mogu --help", "mogu --version", "mogu recipes"}


def _blocks(language: str) -> list[str]:
    """Fenced blocks of a language in all pages; an indented fence belongs to a list."""
    found = []
    for page in PAGES:
        pattern = rf"^( *)```{language}[^\n]*\n(.*?)^\1```"
        for indent, text in re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            found.append("\n".join(line.removeprefix(indent) for line in text.splitlines()))
    return found


def _commands() -> list[list[str]]:
    """Every simple command of the shell blocks, split into words; comments, pipes and redirections are cut off."""
    commands = []
    for block in _blocks("(?:bash|sh|console)"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|&;"):
                    commands.append(words)
                    words = []
                else:
                    words.append(word)
    return [_without_redirections(words) for words in commands if words]


def _without_redirections(words: list[str]) -> list[str]:
    cut = next((n for n, word in enumerate(words) if set(word) <= set("<>")), len(words))
    return words[:cut]


def _lines(program: str) -> list[str]:
    """Distinct command lines of one program; variables set in front of it are dropped."""
    lines = []
    for words in _commands():
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words and Path(words[0]).name == program:
            lines.append(shlex.join([program, *words[1:]]))
    return list(dict.fromkeys(lines))


def _parse(line: str, folder: Path) -> None:
    """Parse a command line without running it; an option that does not exist or lacks its value raises."""
    _, *words = shlex.split(line)
    if "--config" in words:  # which need not exist here
        (folder / "empty.yaml").write_text("{}")
        words[words.index("--config") + 1] = str(folder / "empty.yaml")
    command = get_command(app)
    context = command.make_context("mogu", words)
    while hasattr(command, "commands") and (rest := [*getattr(context, "_protected_args", []), *context.args]):
        name, command, words = command.resolve_command(context, rest)
        context = command.make_context(name, words, parent=context)


def test_readme_shows_the_way_in() -> None:
    assert _lines("mogu"), "README.md has no mogu command in a bash block"
    assert "make demo" in _lines("make")


@pytest.mark.parametrize("line", _lines("mogu"))
def test_commands_parse(line: str, tmp_path: Path) -> None:
    if {"--help", "--version"} & set(shlex.split(line)):
        assert CliRunner().invoke(app, shlex.split(line)[1:]).exit_code == 0
    else:
        _parse(line, tmp_path)


@pytest.mark.parametrize("line", ["mogu chat --adaptr runs/demo", "mogu nix", "mogu harden", "mogu data buid"])
def test_a_mistake_would_be_noticed(line: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"No such|Missing") as caught:
        _parse(line, tmp_path)
    assert hasattr(caught.value, "format_message")


@pytest.mark.parametrize("line", sorted(QUICK & {*_lines("mogu"), "mogu --help", "mogu recipes"}))
def test_quick_commands_run(line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("line", _lines("mogu"))
def test_recipes_exist(line: str) -> None:
    words = shlex.split(line)
    if "--recipe" in words and not (name := words[words.index("--recipe") + 1]).endswith((".yaml", ".yml")):
        load_recipe(name)


@pytest.mark.parametrize("line", _lines("make"))
def test_make_targets_exist(line: str) -> None:
    subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_yaml_parses() -> None:
    for text in _blocks("yaml"):
        assert yaml.safe_load(text) is not None


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_compiles_and_its_names_exist(code: str) -> None:
    tree = ast.parse(code)
    compile(tree, "README.md", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("mogu."):
            _resolve(name)


def _resolve(name: str) -> None:
    found: object = importlib.import_module("mogu")
    for part in name.split(".")[1:]:
        assert hasattr(found, part), f"{name} does not exist"
        found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
