"""`graft …` at a terminal: up, migrate. Thin: what each command does is in a room of its own."""

import sys

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from api import launch
from core.settings import Settings

NOT_CONFIGURED = 78  # sysexits.h: EX_CONFIG
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@app.callback()
def graft() -> None:
    """Fine-tuning as a service on your own machines. Settings are environment variables that begin with GRAFT_."""


@app.command()
def up() -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    settings = read_settings()
    try:
        launch.up(settings, Console())
    except launch.Refusal as refusal:
        complain(str(refusal))
        raise typer.Exit(1) from None


@app.command()
def migrate() -> None:
    """Bring the database to its present revision and make the first key, shown this once."""
    settings = read_settings()
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        launch.prepare(settings, Console())
    except launch.Refusal as refusal:
        complain(str(refusal))
        raise typer.Exit(1) from None


def read_settings() -> Settings:
    """The settings in force; where they do not hold together, says why and exits 78."""
    try:
        return Settings()
    except ValidationError as faults:
        for fault in faults.errors(include_url=False, include_input=False):
            name = "".join(f"GRAFT_{str(part).upper()}: " for part in fault["loc"][:1])
            complain(f"{name}{fault['msg'].removeprefix('Value error, ')}")
    except SettingsError as fault:
        complain(f"{fault}: it has to be JSON")
    raise typer.Exit(NOT_CONFIGURED)


def complain(text: str) -> None:
    """One line to standard error, for a person."""
    print(f"graft: {text}", file=sys.stderr)  # noqa: T201  # this is the terminal's room


if __name__ == "__main__":
    app()
