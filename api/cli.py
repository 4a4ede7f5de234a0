"""`graft …` at a terminal: up, migrate, fsck; upload, create, jobs, download. What each does is in its own room."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from obstore.exceptions import BaseError
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from api import fsck as checking
from api import launch, remote
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


@app.command()
def fsck(
    repair: Annotated[bool, typer.Option(help="Set blobs aside that no row names. Rows are never altered.")] = False,  # noqa: FBT002  # typer's way of a flag
) -> None:
    """Hold rows against blobs, beside a running service or a stopped one; exits 1 where something is wrong."""
    settings = read_settings()
    try:
        report = checking.check(settings, repair=repair)
    except (SQLAlchemyError, OSError, BaseError) as error:
        complain(
            f"the database or the store cannot be read ({type(error).__name__}): are GRAFT_ settings the service's?"
        )
        raise typer.Exit(1) from None
    for line in report.lines():
        print(line)  # noqa: T201  # the command's answer
    if report.faults:
        raise typer.Exit(1)


Url = Annotated[str, typer.Option(envvar="GRAFT_URL", help="Where the service is. Its key is read from GRAFT_KEY.")]


@app.command()
def upload(file: Path, url: Url = remote.LOCAL) -> None:
    """Bring a dataset to a running service; its id is what is printed."""
    with asking(url) as service:
        print(service.upload(file)["id"])  # noqa: T201  # the command's answer, for $(…)


@app.command()
def create(
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE…", help="model=… training_file=… peft.r=8")],
    url: Url = remote.LOCAL,
) -> None:
    """Make a job of the values that POST /v1/fine_tuning/jobs takes; its id is what is printed."""
    with asking(url) as service:
        print(service.create(remote.body_of(values))["id"])  # noqa: T201  # the command's answer, for $(…)


@app.command()
def jobs(limit: Annotated[int, typer.Option(min=1, max=100)] = 20, url: Url = remote.LOCAL) -> None:
    """List the newest jobs."""
    with asking(url) as service:
        table = Table("job", "state", "step", "method", "model", box=None)
        for job in service.jobs(limit):
            step = f"{job['step']}/{job['total_steps'] or '?'}"
            table.add_row(job["id"], job["status"], step, job["peft"]["type"], job["fine_tuned_model"] or "")
        Console(soft_wrap=True).print(table)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="An adapter or a checkpoint, by its name.")],
    to: Annotated[Path, typer.Option(help="The file that is written.")] = Path("adapter.zip"),
    url: Url = remote.LOCAL,
) -> None:
    """Fetch an adapter as a PEFT zip; where it went is what is printed."""
    with asking(url) as service:
        service.download(model, to)
        print(to)  # noqa: T201  # the command's answer


@contextmanager
def asking(url: str) -> Iterator[remote.Remote]:
    """A running service. What it refuses is said, and exits 1."""
    try:
        with remote.connected(url) as service:
            yield service
    except remote.Refused as refusal:
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
