"""The study of the paper, and each of its figures alone, as CSV and picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saturation.errors import ArgumentError
from saturation.plots.panels import Picture
from saturation.runtime.progress import Progress
from saturation.studies.base import Part, Results, Row, Stacked, Study, claim, control
from saturation.studies.output import write_csv, write_pictures
from saturation.studies.scan_snap.pictures import picture_3, picture_4, picture_6
from saturation.studies.scan_snap.predictions import (
    Prediction,
    frequency_bias,
    lemma_1_deviation,
    snap,
)
from saturation.studies.scan_snap.tables import (
    COMMON,
    FIGURE_3,
    RATES_Z,
    columns,
    entropies,
    entropy_rows,
    figure_3,
    figure_4,
    figure_6,
)

FIGURES = (3, 4, 6)
BELOW_0 = (-np.inf, 0.0)


def reproduce(
    figure: int,
    out: str,
    last_tokens: Sequence[int] = (1, 3, 5, 10),
    seeds: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Simulate a figure and write it to `out`: figureN.csv, .png and .pdf (3: theory.csv too).

    Args:
        figure: one of `FIGURES`.
        out: a local folder.
        last_tokens: of figure 6.
        seeds: of figure 6.
        seed: from which all random numbers follow.
        progress: of figure 6.

    Returns:
        The paths written.

    Raises:
        ArgumentError: there is no such figure, or a number is not positive.
        ResultsError: the folder cannot be written.
    """
    if figure not in FIGURES:
        raise ArgumentError(f"There is no figure {figure} here; there are 3, 4 and 6.")
    if seeds < 1 or not last_tokens or min(last_tokens) < 1:
        raise ArgumentError("Figure 6 needs at least one seed and positive numbers of last tokens.")
    folder, theory = Path(out), []
    if figure == 6:
        rows = figure_6(last_tokens, seeds, seed, progress)
        picture = picture_6(columns(rows))
    elif figure == 4:
        rows = figure_4(seed)
        picture = picture_4(columns(rows))
    else:
        tables = [figure_3([setting], [common]) for common, setting in _FLOWS]
        rows = [row for table in tables for row in table]
        picture = picture_3(columns(rows))
        found = [lemma_1_deviation(seed), *frequency_bias()]
        found += [one for table in tables for one in snap(columns(table))]
        theory = [write_csv(folder / "theory.csv", [one.row for one in found])]
    paths = [write_csv(folder / f"figure{figure}.csv", rows), *theory]
    return [*paths, *write_pictures([picture], folder, "Scan and Snap")]


_FLOWS = [(common, setting) for common in COMMON for setting in FIGURE_3]


def _parts(seeds: int, full: bool) -> dict[Any, int]:
    """What is random has seeds; the gradient flow on the true distribution has none."""
    flows = [("figure 3", setting, common) for common, setting in _FLOWS]
    once = ["frequency bias", "figure 4", *flows]
    sweeps = [("figure 6", number) for number in ((1, 3, 5, 10) if full else (1, 3))]
    return {"Lemma 1": seeds, **dict.fromkeys(once, 1), **dict.fromkeys(sweeps, seeds)}


def _simulate(setting: Any, seeds: Sequence[int]) -> Iterator[Part]:
    match setting:
        case "Lemma 1":
            yield from (columns([vars(lemma_1_deviation(seed))]) for seed in seeds)
        case "frequency bias":
            yield columns([vars(one) for one in frequency_bias()])
        case "figure 4":
            yield columns(figure_4(seeds[0]))
        case ("figure 3", flow, common):
            yield columns(figure_3([flow], [common]))
        case ("figure 6", number):
            yield from ({"entropy": each} for each in entropies(number, seeds))


def _judge(results: Results) -> Iterator[Row]:
    for setting, part in results.items():
        match setting:
            case "Lemma 1" | "frequency bias":
                cells = zip(*(column[0].tolist() for column in part.values()), strict=True)
                found = zip(cells, part["measured"].T, strict=True)
                yield from (_row(Prediction(*said), measured) for said, measured in found)
            case "figure 4":
                yield from _leaving(part)
            case ("figure 3", _, _):
                yield from (_row(one, one.measured) for one in snap(_first(part)))
            case ("figure 6", number):
                yield from _sparse(number, part)


def _row(one: Prediction, measured: Any) -> Row:
    said = f"{one.prediction}; {one.unit}", one.setting, measured
    if one.bounds is None:
        return claim(*said, None, one.predicted, "no")
    low, high = one.bounds
    return (claim if one.claimed else control)(*said, (low, high), one.predicted)


def _leaving(part: Stacked) -> Iterator[Row]:
    table = _first(part)
    for rate in np.unique(table["eta_y"]):
        common = (table["eta_y"] == rate) & (table["kind"] == "common")
        last = table["iteration"].max()
        ends = [table["c"][common & (table["iteration"] == each)].sum() for each in (0, last)]
        where = f"{last} iterations, η_Y = {rate:g}, η_Z = 1"
        share = (ends[1] - ends[0]) / len(np.unique(table["class"]))
        yield claim("attention on common tokens, end less start", where, share, BELOW_0, "below 0")


def _sparse(number: int, part: Stacked) -> Iterator[Row]:
    entropy = part["entropy"].reshape(-1, len(RATES_Z), part["entropy"].shape[1] // len(RATES_Z))
    where = f"{number} last token{'s' if number > 1 else ''}, 100 iterations"
    by_rate = (entropy[:, -1] - entropy[:, 0]).mean(axis=1)
    by_ratio = (entropy[:, :, 1] - entropy[:, :, 0]).mean(axis=1)
    text = "entropy on distinct tokens at the largest η_Z less that at the smallest; nats"
    yield claim(text, where, by_rate, BELOW_0, "below 0")
    text = "entropy on distinct tokens at η_Y/η_Z = 2 less that at 1; nats"
    yield (claim if number > 1 else control)(text, where, by_ratio, BELOW_0, "below 0")


def _pictures(results: Results) -> Iterator[Picture]:
    flows = [_first(part) for setting, part in results.items() if setting[0] == "figure 3"]
    if flows:
        yield picture_3({name: np.concatenate([t[name] for t in flows]) for name in flows[0]})
    if "figure 4" in results:
        yield picture_4(_first(results["figure 4"]))
    rows = [
        row
        for setting, part in results.items()
        if setting[0] == "figure 6"
        for row in entropy_rows(setting[1], part["entropy"])
    ]
    if rows:
        yield picture_6(columns(rows))


def _first(part: Stacked) -> dict[str, np.ndarray]:
    return {name: column[0] for name, column in part.items()}


STUDY = Study(
    name="scan-snap",
    title="How one layer of attention learns which tokens matter",
    paper="Tian, Wang, Chen and Du, Scan and Snap: Understanding Training Dynamics and Token "
    "Composition in 1-layer Transformer, NeurIPS 2023, arXiv 2305.16380",
    reads="One layer of attention without positions predicts the next token of a synthetic "
    "language. Theory is about gradient flow on the true distribution with η_Y ≫ η_Z and classes "
    "that hardly overlap. In a control one of these assumptions does not hold, or the effect is "
    "absent; what the theorem leaves open (C₀) is not claimed.",
    parts=_parts,
    simulate=_simulate,
    judge=_judge,
    pictures=_pictures,
    seeds=4,
)
