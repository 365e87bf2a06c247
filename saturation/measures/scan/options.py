"""By what common and distinct tokens are told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saturation.config.options import Option, Options


@dataclass(frozen=True)
class ScanOptions(Options):
    """The text that is counted."""

    corpus: Annotated[
        str | None,
        Option(
            "What `scan` tells common from distinct tokens by; by default all of --tokens.",
            "FILE",
            recorded=False,
        ),
    ] = None


OPTIONS = ScanOptions
