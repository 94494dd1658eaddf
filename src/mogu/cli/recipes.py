"""``mogu recipes``: which there are, and what is in them."""

from __future__ import annotations

from typing import Annotated

import typer

from mogu.cli import options
from mogu.cli.view import print_table
from mogu.recipe import load_recipe, recipe_names

app = typer.Typer(help="Shipped recipes: list them, or show one.", invoke_without_command=True)


@app.callback()
def _list(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print_table([["recipe", "description"], *([name, load_recipe(name).description] for name in recipe_names())])


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe or a YAML file.")],
    config: options.Config = None,
) -> None:
    """Print a recipe with all its values, ready to be saved and changed."""
    print(load_recipe(name).to_yaml(), end="")
