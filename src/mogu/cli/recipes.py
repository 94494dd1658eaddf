"""``mogu recipes``: which there are, and what is in them."""

from __future__ import annotations

from typing import Annotated

import typer

from mogu.cli import options
from mogu.cli.view import print_table
from mogu.errors import ConfigError
from mogu.recipe import launch_files, load_recipe, recipe_names

app = typer.Typer(help="Shipped recipes: list them, or show one.", invoke_without_command=True)


@app.callback()
def _list(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print_table([["recipe", "description"], *([name, load_recipe(name).description] for name in recipe_names())])
        print(f"\nFor accelerate launch (mogu recipes launch NAME prints the path): {', '.join(launch_files())}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe or a YAML file.")],
    config: options.Config = None,
) -> None:
    """Print a recipe with all its values, ready to be saved and changed."""
    print(load_recipe(name).to_yaml(), end="")


@app.command("launch")
def launch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ddp, fsdp, deepspeed or cpu.")],
    config: options.Config = None,
) -> None:
    """Print the path of a configuration for accelerate launch --config_file."""
    files = launch_files()
    if name not in files:
        raise ConfigError(f"no launch configuration {name!r}; choose from {', '.join(files)}")
    print(files[name])
