"""What commands write to the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from saturation.errors import escaped

if TYPE_CHECKING:
    from saturation.runtime.progress import Progress


def print_result(result: str | dict[str, Any]) -> None:
    """Print a text, or what is not one as JSON."""
    say(result if isinstance(result, str) else json.dumps(result, indent=1))


def say(text: object) -> None:
    """Print a line, harmless to a terminal whatever a file's name or a server put in."""
    typer.echo(escaped(str(text)))


def progress_of(what: str, unit: str, quiet: bool = False) -> Progress:
    """Return a progress bar on stderr."""
    from saturation.runtime.progress import Progress

    return Progress(what, unit, quiet=quiet)
