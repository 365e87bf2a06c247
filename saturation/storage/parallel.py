"""Does something for each of many things, several at once where each waits for a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 16


def map_in_threads(
    action: Callable[[Item], Result], items: Iterable[Item], at_once: int = AT_ONCE
) -> list[Result]:
    """Return `action(item)` of every item, in their order.

    Raises:
      Exception: what `action` raised for the first item that it failed for; no other is begun then.
    """
    things = list(items)
    if at_once == 1 or len(things) < 2:
        return [action(item) for item in things]
    with ThreadPoolExecutor(min(at_once, len(things)), "network") as pool:
        try:
            return list(pool.map(action, things))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
