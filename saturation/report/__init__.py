"""From the results table to what people read: figures, a text, a page, and files of other tools.

Nothing here needs JAX. Each name is imported from its file on first use, so that a text alone costs
neither matplotlib nor plotly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saturation.report.figures import write_figures
    from saturation.report.page import write_page
    from saturation.report.series import Fits, fit_tables
    from saturation.report.summary import summarize, write_summary

_HOME = {
    "Fits": "saturation.report.series",
    "fit_tables": "saturation.report.series",
    "summarize": "saturation.report.summary",
    "write_figures": "saturation.report.figures",
    "write_page": "saturation.report.page",
    "write_summary": "saturation.report.summary",
}
__all__ = ["Fits", "fit_tables", "summarize", "write_figures", "write_page", "write_summary"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saturation.report' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
