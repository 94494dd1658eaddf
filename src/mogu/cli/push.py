"""``mogu push``: an adapter to the hub, or to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mogu.cli import options


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or adapter folder.")],
    to: Annotated[str, typer.Option(metavar="OWNER/NAME|FOLDER", help="A repository on the hub, or a folder (./…).")],
    base: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="What the base is called on the hub, if it was a local copy."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Nobody else may see a repository that is made.")] = False,
    config: options.Config = None,
) -> None:
    """Publish an adapter with its recipe and a model card that holds its figures; data and answers stay here."""
    from mogu.publish import push as publish

    print(f"adapter: {publish(run, to, base=base, private=private)}")
