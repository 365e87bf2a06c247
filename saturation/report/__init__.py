"""From the results table to what people read: figures, a text, a page, and files of other tools.

Nothing here needs JAX. Each name is imported from its file on first use, so that a text alone costs
neither matplotlib nor plotly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saturation._package import on_first_use

if TYPE_CHECKING:
    from saturation.plots.series import Fits, fit_tables
    from saturation.report.figures import write_figures
    from saturation.report.page import write_page
    from saturation.report.summary import summarize, write_summary

_HOME = {
    "Fits": "saturation.plots.series",
    "fit_tables": "saturation.plots.series",
    "summarize": "saturation.report.summary",
    "write_figures": "saturation.report.figures",
    "write_page": "saturation.report.page",
    "write_summary": "saturation.report.summary",
}
__all__ = ["Fits", "fit_tables", "summarize", "write_figures", "write_page", "write_summary"]


__getattr__, __dir__ = on_first_use(__name__, _HOME)
