"""A run folder that several processes share."""

from __future__ import annotations

from saturation.results.folder import RunFolder
from saturation.runtime.processes import broadcast_from_first


class SharedRunFolder(RunFolder):
    """A run folder that the first process alone reads and writes; every one sees what it sees."""

    def read(self, name: str) -> bytes | None:  # noqa: D102
        def text() -> str | None:
            content = super(SharedRunFolder, self).read(name)
            return None if content is None else content.decode("latin-1")

        found = broadcast_from_first(text)
        return None if found is None else found.encode("latin-1")

    def write(self, name: str, content: bytes) -> None:  # noqa: D102
        broadcast_from_first(lambda: super(SharedRunFolder, self).write(name, content))

    def list_parts(self) -> list[str]:  # noqa: D102
        return broadcast_from_first(super().list_parts)
