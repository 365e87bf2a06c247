"""The page's section on scan and snap: how sharp attention is, what goes to distinct keys."""

from __future__ import annotations

from saturation.report.chart_style import Panel, Section
from saturation.report.head_charts import SPREAD, spread_chart
from saturation.report.scan_text import scan_table
from saturation.report.series import RunTable

READS = (
    "A head scans if its attention on distinct tokens, which tell what follows from what else "
    "might, rises above what attention to all keys alike gives (dotted); it has snapped if it "
    f"moved early and has come to rest (`snapped`). {SPREAD}"
)


def scan_section(run: RunTable) -> Section | None:
    """Return entropy, attention on distinct keys and when heads stop; None where there is none."""
    drawn = (
        ("attention_entropy", "nats", "uniform_entropy", 1.0, "Entropy of attention"),
        (
            "mass_distinct",
            "% of attention",
            "uniform_distinct",
            100.0,
            "Attention on distinct keys",
        ),
    )
    panels = [
        Panel(chart, title, f"`{metric}`; dotted: attention to all allowed keys alike.")
        for metric, label, uniform, factor, title in drawn
        if (chart := spread_chart(run, metric, label, uniform, factor)) is not None
    ]
    if not panels:
        return None
    note = "Every head is a line in scan.png, which `saturation report RUN --figures DIR` draws."
    return Section("Scan and snap", READS, panels, scan_table(run), note)
