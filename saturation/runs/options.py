"""All options of measures of activations: of the tokens, of forward passes, of each measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from saturation.config.options import Count, Option, Options
from saturation.measures import MEASURES, options_of
from saturation.text.options import TextOptions


def _parse_mesh(text: str) -> dict[str, int]:
    from saturation.runtime.sharding import parse_mesh

    return parse_mesh(text)


@dataclass(frozen=True)
class ForwardOptions(Options):
    """How forward passes run."""

    batch_size: Annotated[Count, Option("Sequences in one forward pass.")] = 8
    fast: Annotated[bool, Option("Allow the device's default matmul precision.")] = False
    mesh: Annotated[
        Mapping[Literal["data", "model"], Count] | None,
        Option(
            "For measures of activations: devices that share the sequences of a batch, and the "
            "parameters; by default all on data, if the model fits one device.",
            "data=N,model=M",
            _parse_mesh,
        ),
    ] = None


COMMON = (TextOptions, ForwardOptions)


def measure_options() -> dict[str, type[Options]]:
    """Return {measure: its own options}, of the measures that have some."""
    found = {name: options_of(name) for name in MEASURES}
    return {name: kind for name, kind in found.items() if kind is not None}


def option_class() -> type[Options]:
    """Return the dataclass of all options under their own names, which are the keys of files.

    It is a subclass of `COMMON` and of each measure's options, so that whoever needs some of them
    can be given all.
    """
    return _combined((*COMMON, *measure_options().values()))


@lru_cache
def _combined(kinds: tuple[type[Options], ...]) -> type[Options]:
    return make_dataclass("ActivationOptions", (), bases=kinds[::-1], frozen=True)


def activation_options(**asked: Any) -> Any:
    """Return all options: those asked for, by name, and the defaults of the others.

    Raises:
      ConfigError, MeasureError: a value cannot be used.

    >>> activation_options(sequences=8).sequences, activation_options().batch_size
    (8, 8)
    """
    return option_class()(**asked)
