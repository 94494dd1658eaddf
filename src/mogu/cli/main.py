"""The ``mogu`` command: its sub-commands, and what stays the same for all of them."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from mogu import __version__, processes
from mogu.cli import (
    chat,
    data,
    demo,
    evaluate,
    generate,
    harden,
    import_,
    inspect,
    judge,
    lm_eval,
    mix,
    probe,
    push,
    recipes,
    runs,
    serve,
    train,
)
from mogu.cli.errors import MoguGroup
from mogu.errors import ConfigError

app = typer.Typer(
    cls=MoguGroup,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make an open chat LLM refuse malicious instructions and stay useful on benign ones (MoGU).",
    epilog="Start here: [bold]mogu demo[/bold]. Every command takes --config FILE.yaml; flags on the command line win.",
)

app.command("harden")(harden.harden)
app.command("demo")(demo.demo)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("serve")(serve.serve)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(judge.app, name="judge")
app.command("lm-eval", context_settings=lm_eval.PASSED_ON)(lm_eval.lm_eval)
app.command("train")(train.train)
app.add_typer(data.app, name="data")
app.command("mix")(mix.mix)
app.command("probe")(probe.probe)
app.command("runs")(runs.runs)
app.command("push")(push.push)
app.command("import")(import_.import_)
app.add_typer(recipes.app, name="recipes")


_IN_SEVERAL = frozenset({"harden", "data", "train", "evaluate"})
"""Commands that share their work among the processes of a launcher."""


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"mogu {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    _quieten()
    _join_others(context.invoked_subcommand)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _join_others(command: str | None) -> None:
    """Under a launcher: be one of several processes, of which only the main one speaks."""
    if not processes.launched():
        return
    processes.start()
    if command not in _IN_SEVERAL:
        raise ConfigError(f"{command or 'help'} works in one process; start it without a launcher")
    if not processes.is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def _quieten() -> None:
    """No advice, bars and warnings of the libraries below: they are for developers. Set what you want to keep."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("accelerate", "bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Entry point of the ``mogu`` script."""
    app()
