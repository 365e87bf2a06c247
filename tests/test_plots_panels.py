"""The contract of pictures: matplotlib and plotly show a panel's numbers, the same in both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from report_measures import EVERY, eigenvalues, table

from saturation.measures import pictures_of, pictures_together
from saturation.plots import matplotlib_renderer, plotly_renderer
from saturation.plots.matplotlib_style import RC
from saturation.plots.notation import as_html, as_mathtext
from saturation.plots.panels import (
    Axis,
    Dots,
    HeatMap,
    Histogram,
    Line,
    Mark,
    Note,
    Panel,
    Region,
    Rule,
)
from saturation.plots.series import RunTable, fit_tables
from saturation.report.comparison import compared_panels

LOG_SPACED = (0, 1, 2, 4, 8, 16, 64, 256, 1024)
CASES = {
    "one": [(1000,)],
    "step 0": [(0,)],
    "two": [(0, 10)],
    "many": [LOG_SPACED],
    "NaN": [LOG_SPACED],
    "two runs": [LOG_SPACED, (1, 5, 25, 125, 625)],
}
Found = dict[str, list[Any]]  # {kind of mark: what is shown of each, in order}


def runs_of(measure: str, case: str) -> list[RunTable]:
    """Runs of made tables with laws; of the case NaN a fifth of the values is not finite."""
    runs = []
    for seed, steps in enumerate(CASES[case]):
        beside = {"spectrum": ["smoothing"], "direction": ["norms"]}.get(measure, [])
        made = table([measure, *beside], steps, seed=seed)
        if case == "NaN":
            holes = np.random.default_rng(2).random(len(made)) < 0.2
            made.loc[holes, "value"] = np.random.default_rng(3).choice(
                [np.nan, np.inf], holes.sum()
            )
        laws = fit_tables({"r": made})["r"] if measure == "norms" else None
        vectors = eigenvalues(steps) if measure == "spectrum" else None
        runs.append(RunTable(f"run_{seed} & x", made, vectors, laws))
    return runs


def all_panels(measure: str, case: str) -> Iterator[Panel]:
    """Whatever is shown of these runs: each alone, over each other, and compared."""
    runs = runs_of(measure, case)
    for run in runs:
        for picture in pictures_of(measure, run):
            yield from picture.panels
    for picture in pictures_together(measure, runs):
        yield from picture.panels
    yield from compared_panels(runs)


def numbers(values: Any) -> np.ndarray:
    """Float64, with NaN for what plotly has as None and for ±∞."""
    found = np.array([np.nan if v is None else v for v in np.ravel(values)], float)
    return np.where(np.isfinite(found), found, np.nan)


def places(x: Any) -> tuple[str, ...] | np.ndarray:
    return tuple(x) if any(isinstance(place, str) for place in x) else numbers(x)


def spread(x: Any, low: Any, high: Any) -> dict[Any, tuple[float, float]]:
    """{place: (low, high)} where both are there."""
    ends = zip(places(x), numbers(low), numbers(high), strict=True)
    return {at: (a, b) for at, a, b in ends if np.isfinite([a, b]).all()}


def by_data(panel: Panel) -> Found:
    """What the panel says is to be shown."""
    found: Found = {kind: [] for kind in ("line", "spread", "dots", "heat", "count", "rule",
                                          "region", "note")}  # fmt: skip
    for mark in panel.marks:
        if isinstance(mark, Line):
            found["line"].append((mark.colour.lower(), places(mark.x), numbers(mark.y)))
            if mark.low is not None:
                found["spread"].append(spread(mark.x, mark.low, mark.high))
        elif isinstance(mark, Dots):
            found["dots"].append((numbers(mark.x), numbers(mark.y), numbers(mark.by)))
        elif isinstance(mark, HeatMap):
            found["heat"].append((tuple(mark.rows), numbers(mark.values)))
        elif isinstance(mark, Histogram):
            counts = np.histogram(mark.values, mark.edges)[0]
            found["count"].append((mark.edges, numbers(counts)))
        elif isinstance(mark, Rule):
            found["rule"].append((mark.axis, mark.at))
        elif isinstance(mark, Region):
            found["region"].append((mark.shape, mark.colour.lower(), *_where(mark)))
        else:
            found["note"].append((mark.x, mark.y))
    return found


def _where(region: Region) -> tuple[float, ...]:
    return {"all": (), "left": (region.x,), "disk": (region.x, region.y, region.radius)}[
        region.shape
    ]


def by_matplotlib(panel: Panel) -> tuple[Found, dict[str, Any]]:
    """What lies on the axes, and what they say."""
    with matplotlib.rc_context(RC):
        axes = Figure().subplots()
        matplotlib_renderer.draw_panel(axes, panel)
    found: Found = {kind: [] for kind in by_data(panel)}
    single = next((len(heat.rows) for heat in panel.of(HeatMap) if len(heat.steps) == 1), 0)
    rows = tuple(label.get_text() for label in axes.get_yticklabels())
    for line in axes.lines:
        x, y = (np.asarray(part, float) for part in line.get_data())
        if line.get_transform() != axes.transData:
            upright = line.get_xdata()[0] == line.get_xdata()[1]
            found["rule"].append(("x", x[0]) if upright else ("y", y[0]))
        elif single:
            np.testing.assert_array_equal(y, np.arange(single))
            found["heat"].append((rows, numbers(x)))
        else:
            names = panel.x.order
            at = tuple(names[int(place)] for place in x) if names else numbers(x)
            found["line"].append((to_hex(line.get_color()), at, numbers(y)))
    for shown in axes.collections:
        if isinstance(shown, PathCollection):
            by = shown.get_array()
            found["dots"].append((*map(numbers, np.asarray(shown.get_offsets()).T), numbers(by)))
        elif isinstance(shown, QuadMesh):
            found["heat"].append((rows, numbers(np.ma.filled(shown.get_array(), np.nan))))
        elif isinstance(shown, LineCollection) or shown.get_label().startswith("_"):
            ends: dict[Any, list[float]] = {}
            for path in shown.get_paths():
                for x, y in path.vertices[np.isfinite(path.vertices).all(axis=1)]:
                    at = panel.x.order[int(x)] if panel.x.order else float(x)
                    ends.setdefault(at, []).append(float(y))
            found["spread"].append({at: (min(y), max(y)) for at, y in ends.items() if len(y) > 1})
    for patch in axes.patches:
        if isinstance(patch, Polygon):
            [edges] = [one.edges for one in panel.of(Histogram)
                       if as_mathtext(one.name) == patch.get_label()]  # fmt: skip
            found["count"].append((edges, _heights(patch.get_xy(), edges)))
        else:
            found["region"].append(_patch(patch))
    if any(region.shape == "all" for region in panel.of(Region)):
        found["region"].insert(0, ("all", to_hex(axes.get_facecolor())))
    for text in axes.texts:
        data = getattr(text, "xycoords", "") == "data"
        found["note"].append(tuple(text.xy) if data else (None, None))
    says = {
        "title": axes.get_title(loc="left"),
        "x": axes.get_xlabel(),
        "y": axes.get_ylabel(),
        "log": (axes.get_xscale() != "linear", axes.get_yscale() != "linear"),
        "names": set(axes.get_legend_handles_labels()[1]),
    }
    return found, says


def _heights(corners: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How high the outline of a histogram stands above each bin."""
    level = [(min(a[0], b[0]), max(a[0], b[0]), a[1])
             for a, b in pairwise(corners) if a[1] == b[1]]  # fmt: skip
    middles = (edges[1:] + edges[:-1]) / 2
    return np.array([max(y for a, b, y in level if a < middle < b) for middle in middles])


def _patch(patch: Any) -> tuple[Any, ...]:
    colour = to_hex(patch.get_facecolor())
    if isinstance(patch, Circle):
        return ("disk", colour, *patch.center, patch.radius)
    assert isinstance(patch, Rectangle)
    return ("left", colour, patch.get_x() + patch.get_width())


def by_plotly(panel: Panel) -> tuple[Found, dict[str, Any]]:
    """What plotly is given; step 0 is taken back to where it is from where it is drawn."""
    chart = plotly_renderer.chart(panel).to_plotly_json()
    layout = chart["layout"]
    found: Found = {kind: [] for kind in by_data(panel)}
    across = layout["xaxis"]
    named_0 = (across.get("ticktext") or [""])[0] == "0"
    zero = across["tickvals"][0] if named_0 else 0  # a single step 0 is where it is
    heat = next(iter(panel.of(HeatMap)), None)
    names, lower = set(), None
    for trace in chart["data"]:
        x = [0 if place == zero else place for place in trace["x"]]
        if trace.get("showlegend", trace["type"] == "bar" or trace.get("name")):
            names.add(trace["name"])
        if trace["type"] == "heatmap":
            assert trace["x"] == [f"{step:,}" for step in heat.steps]
            found["heat"].append((tuple(trace["y"]), numbers(np.concatenate(trace["z"]))))
        elif trace["type"] == "bar":
            left, right = (numbers(trace["x"]) + sign * numbers(trace["width"]) / 2
                           for sign in (-1, 1))  # fmt: skip
            found["count"].append((np.append(left, right[-1]), numbers(trace["y"])))
        elif heat is not None:
            found["heat"].append((tuple(trace["y"]), numbers(trace["x"])))
        elif isinstance(trace["marker"].get("color") if "marker" in trace else None, list):
            by = trace["marker"]["color"]
            found["dots"].append((numbers(x), numbers(trace["y"]), numbers(by)))
        elif trace.get("hoverinfo") == "skip" and lower is None:
            lower = trace["y"]
        elif trace.get("hoverinfo") == "skip":
            found["spread"].append(spread(x, lower, trace["y"]))
            lower = None
        elif x != [None]:
            if zero:
                np.testing.assert_array_equal(trace["customdata"], x)
            y = numbers(trace["y"])
            found["line"].append((trace["line"]["color"].lower(), places(x), y))
            if "error_y" in trace:
                less, more = (numbers(trace["error_y"][end]) for end in ("arrayminus", "array"))
                found["spread"].append(spread(x, y - less, y + more))
    for shape in layout.get("shapes", ()):
        found["rule" if shape["type"] == "line" else "region"].append(_shape(shape))
    if any(region.shape == "all" for region in panel.of(Region)):
        found["region"].insert(0, ("all", layout["plot_bgcolor"].lower()))
    logs = tuple(layout[axis].get("type") == "log" for axis in ("xaxis", "yaxis"))
    for note in layout.get("annotations", ()):
        at = [10 ** note[end] if log else note[end] for end, log in zip("xy", logs, strict=True)]
        found["note"].append((None, None) if note.get("xref") == "paper" else tuple(at))
    says = {"x": across["title"]["text"], "y": layout["yaxis"]["title"]["text"], "log": logs,
            "names": names}  # fmt: skip
    return found, says


def _shape(shape: dict[str, Any]) -> tuple[Any, ...]:
    if shape["type"] == "line":
        return ("x", shape["x0"]) if shape["x0"] == shape["x1"] else ("y", shape["y0"])
    colour = shape["fillcolor"].lower()
    if shape["type"] == "rect":
        return ("left", colour, shape["x1"])
    radius = (shape["x1"] - shape["x0"]) / 2
    return ("disk", colour, shape["x0"] + radius, shape["y0"] + radius, radius)


def same(wanted: Any, shown: Any, rtol: float) -> None:
    """Equal, texts exactly and numbers to as many digits as the page keeps."""
    if isinstance(wanted, dict):
        assert set(wanted) == set(shown)
        wanted, shown = ([one[key] for key in wanted] for one in (wanted, shown))
    if isinstance(wanted, (list, tuple)) and not isinstance(wanted, str):
        assert len(wanted) == len(shown)
        for one, other in zip(wanted, shown, strict=True):
            same(one, other, rtol)
    elif isinstance(wanted, str) or wanted is None:
        assert wanted == shown
    else:
        size = np.nanmax(np.abs(wanted), initial=0) if np.size(wanted) else 0
        np.testing.assert_allclose(shown, wanted, rtol, rtol * size)


def compare(panel: Panel) -> None:
    """Fail where a rendering does not show the numbers of a panel, or not as the other does."""
    wanted = by_data(panel)
    (figure, printed), (chart, page) = by_matplotlib(panel), by_plotly(panel)
    for shown in (figure, chart):
        for kind, marks in wanted.items():
            same(marks, shown[kind], 1e-4 if kind in ("heat", "dots", "spread") else 2e-7)
    named = [mark.name for mark in panel.marks if not isinstance(mark, (Dots, HeatMap, Rule, Note))]
    assert printed["names"] == {as_mathtext(name) for name in named if name}
    assert page["names"] == {as_html(name) for name in named if name}
    assert printed["title"].replace("\n", " ") == as_mathtext(panel.title)
    assert printed["log"][1] == page["log"][1]
    if not any(True for _ in panel.of(HeatMap)):
        assert printed["log"] == page["log"]
        for axis, label in (("x", panel.x.label), ("y", panel.y.label)):
            assert printed[axis].replace("\n", " ") == as_mathtext(label.replace("\n", " "))
            assert page[axis].replace("<br>", " ") == as_html(label.replace("\n", " "))
            assert label


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("measure", EVERY)
def test_both_renderers_show_every_panels_numbers(measure: str, case: str) -> None:
    found = list(all_panels(measure, case))
    assert found or (measure == "direction" and len(CASES[case][0]) == 1)
    for panel in found:
        try:
            compare(panel)
        except AssertionError as error:
            raise AssertionError(f"{panel.title}: {error}") from error


X = np.array([0.0, 1, 2, 4, 8, 16, 64, 256])
MADE: dict[str, Panel] = {
    "line": Panel("line", [Line(X, X + 1, "a_t", "#112233", low=X, high=X + 3)], Axis("y", "log")),
    "bars": Panel(
        "bars",
        [Line(["b", "a"], np.ones(2), "n", low=np.zeros(2), high=np.full(2, 3.0), bars=True)],
        Axis("y"), Axis("x", "categories", order=["a", "b", "c"]),
    ),
    "dots": Panel("dots", [Dots(X, X**2, X + 1, "layer")], Axis("y"), Axis("x")),
    "heat map": Panel(
        "heat", [HeatMap(np.array([0, 10]), ["a", "b"], np.array([[1, np.nan], [3, 4]]), "v")],
        Axis(),
    ),
    "one column": Panel(
        "heat", [HeatMap(np.array([7]), ["a", "b"], np.array([[1.0], [3]]), "v", (0, 4))], Axis()
    ),
    "histogram": Panel(
        "histogram", [Histogram(X, np.array([0.0, 1.5, 20, 300]), "all", "#112233")],
        Axis("heads", "whole"), Axis("x"),
    ),
    "rule": Panel("rule", [Rule(3.0), Rule(2.0, "x"), Line(X, X)], Axis("y"), Axis("x")),
    "region": Panel(
        "region",
        [Region("all", "else", "#aabbcc"), Region("left", "left", "#ddeeff", x=-1),
         Region("disk", "in", "#ccddee", 1, 2, 0.5), Dots(X, X, X, "l")],
        Axis("y"), Axis("x"),
    ),
    "note": Panel("note", [Line(X[1:], X[1:]), Note("here", 4.0, 16.0), Note("corner")],
                  Axis("y", "log"), Axis("x", "log")),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_mark_is_shown_alike(name: str) -> None:
    compare(MADE[name])


def _wrong(mark: Any) -> Mark:
    """The mark with one of its numbers a little off."""
    if isinstance(mark, Line) and mark.low is not None:
        return replace(mark, high=mark.high * 1.001)
    if isinstance(mark, Line | Dots):
        return replace(mark, y=mark.y * 1.001)
    if isinstance(mark, HeatMap):
        return replace(mark, values=mark.values[::-1])
    if isinstance(mark, Histogram):
        return replace(mark, values=mark.values[1:])
    if isinstance(mark, Rule):
        return replace(mark, at=mark.at + 0.1)
    return replace(mark, x=mark.x + 0.1 if mark.x is not None else None)


@pytest.mark.parametrize("renderer", [matplotlib_renderer, plotly_renderer])
@pytest.mark.parametrize("name", MADE)
def test_a_renderer_that_is_wrong_is_found(name: str, renderer: Any, monkeypatch) -> None:
    for kind, right in renderer._DRAW.items():
        monkeypatch.setitem(
            renderer._DRAW, kind, lambda to, mark, right=right: right(to, _wrong(mark))
        )
    with pytest.raises(AssertionError):
        compare(MADE[name])


def test_step_0_has_a_place_on_a_logarithmic_axis() -> None:
    chart = plotly_renderer.chart(MADE["line"]).to_plotly_json()
    axis = chart["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert axis["ticktext"] == ["0", "1", "10", "100"]
    assert axis["tickvals"] == [0.5, 1, 10, 100]
    low, high = 10 ** np.array(axis["range"])
    assert low < 0.5 < 256 < high
    line = chart["data"][-1]
    assert list(line["x"]) == [0.5, *X[1:]]
    assert list(line["customdata"]) == X.tolist()
    assert "customdata" in line["hovertemplate"]


def test_colours_mean_the_same_in_both() -> None:
    for colours in ("viridis", "RdBu"):
        heat = HeatMap(np.array([0, 1]), ["a"], np.array([[0.0, 1]]), "v", (0.0, 1.0), colours)
        panel = Panel("heat", [heat], Axis())
        axes = Figure().subplots()
        matplotlib_renderer.draw_panel(axes, panel)
        mesh = next(one for one in axes.collections if isinstance(one, QuadMesh))
        trace = plotly_renderer.chart(panel).to_plotly_json()["data"][0]
        assert mesh.get_clim() == (trace["zmin"], trace["zmax"]) == (0, 1)
        for end in (0, -1):
            shown = str(trace["colorscale"][end][1])
            rgb = (
                [int(part) for part in re.findall(r"\d+", shown)]
                if shown.startswith("rgb")
                else [int(shown[i : i + 2], 16) for i in (1, 3, 5)]
            )
            wanted = mesh.get_cmap()(float(end % 2))[:3]
            np.testing.assert_allclose(wanted, np.array(rgb) / 255, atol=0.02)


def test_a_single_step_is_named_and_rows_run_downwards() -> None:
    panel = Panel("line", [Line(np.array([1000]), np.array([2.0]))], Axis("y"))
    assert plotly_renderer.chart(panel).layout.xaxis.ticktext == ("1,000",)
    axes = Figure().subplots()
    matplotlib_renderer.draw_panel(axes, panel)
    assert axes.get_xticks().tolist() == [1000]
    axes = Figure().subplots()
    matplotlib_renderer.draw_panel(axes, MADE["heat map"])
    assert axes.yaxis_inverted()
    assert plotly_renderer.chart(MADE["heat map"]).layout.yaxis.autorange == "reversed"


@pytest.mark.parametrize(("heads", "tick"), [(1, 1), (7, 1), (80, 10)])
def test_whole_numbers_have_whole_ticks(heads: int, tick: int) -> None:
    histogram = Histogram(np.full(heads, 0.5), np.array([0.0, 1, 2]), "all", "#112233")
    panel = Panel("histogram", [histogram], Axis("heads", "whole"), Axis("x"))
    assert plotly_renderer.chart(panel).layout.yaxis.dtick == tick
    axes = Figure().subplots()
    matplotlib_renderer.draw_panel(axes, panel)
    ticks = axes.get_yticks()
    assert (ticks == np.round(ticks)).all()


def test_of_many_layers_some_are_named_and_of_other_names_all() -> None:
    names = ["fit", *(f"encoder/layers_{n}" for n in range(24)), "encoder/final"]
    lines = [Line(X, X + n, name) for n, name in enumerate(names)]
    figure = Figure()
    with matplotlib.rc_context(RC):
        axes = figure.subplots()
        matplotlib_renderer.draw_panel(axes, Panel("many", lines, Axis("y"), legend=True))
    shown = matplotlib_renderer._some(axes.get_legend_handles_labels()[1])
    assert shown == [
        "fit",
        *(f"encoder/layers_{n}" for n in (0, 5, 9, 14, 18, 23)),
        "encoder/final",
    ]
    low, high = (plotly_renderer.chart(Panel("", lines[:n], Axis())).layout.height for n in (2, 26))
    assert high > low + 100, "a long legend makes a chart higher"
