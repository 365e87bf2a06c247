"""Options, each written once: a frozen dataclass has their types, bounds, defaults and help.

The command line's parameters, the keys of experiment files and Python's keywords are all made of
its fields. Light to import, as `saturation --help` needs.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Lt

from saturation.errors import ConfigError

# From 2^63 on, they are no numbers that arrays and files count with.
Count = Annotated[int, Ge(1), Lt(2**63)]
Natural = Annotated[int, Ge(0), Lt(2**63)]
Fraction = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class Option:
    """What is said of an option beside its type, bounds and default.

    Attributes:
      help: a sentence for the command line and for readers of the code.
      metavar: what stands for its value on the command line.
      parse: returns its value from the command line's text, where the type does not say how.
      recorded: whether `run.json` has the value; not where it has what was read there instead.
    """

    help: str
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    recorded: bool = True


@dataclass(frozen=True)
class Options:
    """A base of dataclasses with fields `name: Annotated[type, bounds, Option(…)] = default`.

    Raises:
      ConfigError: a value lies outside its bounds.
    """

    def __post_init__(self) -> None:
        for one in described(type(self)):
            one.refuse_outside(getattr(self, one.name))


@dataclass(frozen=True)
class Described:
    """One field of options.

    Attributes:
      name: of the field.
      kind: its type, without None and bounds.
      optional: whether it may be None.
      bounds: of its values.
      option: what is said of it.
      default: None where it is optional and left to the program.
    """

    name: str
    kind: Any
    optional: bool
    bounds: tuple[Ge | Gt | Lt, ...]
    option: Option
    default: Any

    def read(self, text: Any) -> Any:
        """Return the value of what the command line gives: of a text, where it has to be parsed."""
        return text if text is None or self.option.parse is None else self.option.parse(text)

    def refuse_outside(self, value: Any) -> None:
        """Raise `ConfigError` where a value lies outside the bounds."""
        for bound in self.bounds if value is not None else ():
            words, limit, within = _compared(bound, value)
            if not within:
                raise ConfigError(f"{self.name}: {words} {limit} was expected, found {value!r}.")


def described(kind: type[Options]) -> Iterator[Described]:
    """Yield the fields of options, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        extras = hints[one.name].__metadata__
        plain, optional = _without_none(hints[one.name].__origin__)
        if get_origin(plain) is Annotated:
            plain, extras = plain.__origin__, (*plain.__metadata__, *extras)
        bounds = tuple(extra for extra in extras if isinstance(extra, Ge | Gt | Lt))
        option = next(extra for extra in extras if isinstance(extra, Option))
        default = None if one.default is MISSING else one.default
        yield Described(one.name, plain, optional, bounds, option, default)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    (plain,) = (one for one in get_args(hint) if one is not type(None))
    return plain, True


def _compared(bound: Ge | Gt | Lt, value: Any) -> tuple[str, Any, bool]:
    """Return a bound in words, its number, and whether a value keeps it; NaN keeps none."""
    if isinstance(bound, Ge):
        return "at least", bound.ge, value >= bound.ge
    if isinstance(bound, Gt):
        return "more than", bound.gt, value > bound.gt
    return "less than", bound.lt, value < bound.lt


def comma_separated(text: str) -> tuple[str, ...]:
    """Return the names of a list as the command line takes it.

    >>> comma_separated("norms, direction")
    ('norms', 'direction')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())
