"""Values that are found out once, when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class cached_property(Generic[Value]):
    """`functools.cached_property` as it is from Python 3.12 on: without a lock.

    Before, all instances of a class wait for the one whose value is being found out; where that
    takes a request over a network, folders that are opened together would be opened in turn.
    """

    def __init__(self, find: Callable[[Any], Value]):
        self._find, self.__doc__ = find, find.__doc__
        self._name = find.__name__

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._find(instance)
        return value
