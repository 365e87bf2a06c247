"""YAML without what a small text can grow large by: names for parts of it, and deep nesting."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 20


class _PlainLoader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read: write the value out")
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested deeper than {DEEPEST}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def load_yaml(text: str | bytes) -> Any:
    """Return what a YAML text says.

    Raises:
      yaml.YAMLError: it is no YAML, has an alias, is nested deeper than 20, or has a scalar that is
        none of its type.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError:
        raise
    # Its constructors raise whatever comes of `!!bool x`, `!!int ""`, 2001-99-99, 5,000 digits.
    except Exception as error:
        raise yaml.YAMLError(f"a value is none of its type ({type(error).__name__})") from error


def say_where(error: yaml.YAMLError) -> str:
    """Return the line and what is wrong there, in brackets and with a space before; or ""."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f" (line {mark.line + 1})"
    return f" ({error})" if len(str(error)) < 100 and "\n" not in str(error) else ""
