"""The parameters of commands: those that several share, and those made of options' fields."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge
from typer.core import TyperCommand

if TYPE_CHECKING:
    from saturation.config.options import Described, Options

TrajectoryArgument = Annotated[
    str, typer.Argument(metavar="TRAJECTORY", help="A folder of checkpoints.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A folder that `measure` wrote.")]
StepsOption = Annotated[
    str | None,
    typer.Option("--steps", metavar="START:STOP:EVERY", help="Steps to take; STOP is included."),
]
NamesOption = Annotated[
    str,
    typer.Option(
        "--names",
        metavar="canonical|stored",
        help="Call arrays as every format does here, or as they are called on disk.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


class WithActivationOptions(TyperCommand):
    """A command that has all options of measures of activations beside its own.

    Their values are the `obj` of its context, by name. They are looked up when the command is
    used, since measures take a while to import that `saturation --help` need not wait for.
    """

    context_class = typer.Context

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: D102
        *own, asks_for_help = super().get_params(ctx)
        return [*own, *self._activation_params, asks_for_help]

    def invoke(self, ctx: Any) -> Any:  # noqa: D102
        ctx.obj = {one.name: ctx.params.pop(one.name) for one in self._activation_params}
        return super().invoke(ctx)

    @cached_property
    def _activation_params(self) -> list[Any]:
        return _activation_params()


def _activation_params() -> list[Any]:
    """Return the options as typer makes them of a function's parameters."""
    from saturation.runs.options import COMMON, measure_options

    groups = [("", kind) for kind in COMMON]
    groups += [(f"Options of {name}", kind) for name, kind in measure_options().items()]

    def command() -> None: ...

    parameters = [one for panel, kind in groups for one in _parameters(kind, panel)]
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return typer.main.get_command(app).params


def _parameters(kind: type[Options], panel: str) -> Iterator[inspect.Parameter]:
    from saturation.config.options import described

    for one in described(kind):
        yield inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_shown(one.default),
            annotation=Annotated[
                _kind_of(one), typer.Option(_flag(one), **_settings_of(one), rich_help_panel=panel)
            ],
        )


def _flag(one: Described) -> str:
    return f"--{one.name.replace('_', '-')}"


def _kind_of(one: Described) -> Any:
    kind = str if one.option.parse else one.kind
    return kind | None if one.optional else kind


def _settings_of(one: Described) -> dict[str, Any]:
    least: list[Any] = [bound.ge for bound in one.bounds if isinstance(bound, Ge)]
    return {
        "help": one.option.help,
        "metavar": one.option.metavar,
        "min": max(least, default=None),
    }


def _shown(default: Any) -> Any:
    return ",".join(default) if isinstance(default, tuple) else default


def activation_values(texts: dict[str, Any]) -> Any:
    """Return the options, as `activation_options` gives them, that a command line asks for."""
    from saturation.config.options import described
    from saturation.runs.options import activation_options, option_class

    fields = described(option_class())
    return activation_options(**{one.name: one.read(texts[one.name]) for one in fields})
