"""Reads the page as a browser would: what is seen, and the charts that plotly is given."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pandas as pd

from saturation.report import fit_tables
from saturation.report.page import build_page


class Reader(HTMLParser):
    """Collects what a browser would see: tags, attributes, text outside scripts and styles.

    `placed` has (heading of the section, title of the chart, the text under it, id) of each chart.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.placed: list[tuple[str, str, str, str]] = []
        self._inside = ""
        self._texts = {"h2": "", "h3": "", "b": "", "figcaption": ""}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            self.scripts.append("")
        if tag in self._texts:
            self._open.append(tag)
            self._texts[tag] = ""
        if tag == "h2":
            self._texts["h3"] = ""
        if tag == "div" and "id" in dict(attrs):
            heading = self._texts["h3"] or self._texts["h2"]
            title = self._texts["b"]
            says = self._texts["figcaption"].removeprefix(title)
            self.placed.append((heading, title, says, str(dict(attrs)["id"])))

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data
        else:
            self.text += data
            for tag in self._open:
                self._texts[tag] += data


def build(tables: dict[str, pd.DataFrame], facts=None, eigenvalues=None) -> Reader:
    return Reader(build_page(tables, fit_tables(tables), facts or {}, eigenvalues))


def charts_of(page: Reader) -> dict[str, dict[str, Any]]:
    found = re.search(r"const charts = (\{.*\});\nfor", page.scripts[-1], flags=re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def sections_of(page: Reader) -> dict[str, dict[str, dict[str, Any]]]:
    """{heading: {title: chart}}, of a page of one run."""
    charts, found = charts_of(page), {}
    for heading, title, _, name in page.placed:
        found.setdefault(heading, {})[title] = charts[name]
    return found


def lines_of(chart: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: what plotly draws}, without the edges of bands."""
    return {line["name"]: line for line in chart["data"] if "name" in line}
