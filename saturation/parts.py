"""The parts of a run: Parquet tables of a measure's statistics, and which of them there should be.

A measure of weights has a series of parts for each bundle of arrays, one of groups of arrays for
each group, one of activations a part for each step.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import ResultsError
from saturation.measures import MEASURES, find_measures
from saturation.measures.base import ActivationMeasure, GroupMeasure, Measure
from saturation.runfolder import RUN_FILE, RunFolder, part_name

if TYPE_CHECKING:
    from pyarrow import Array

IDENTITY = "files"  # what the fingerprints in `run.json` are taken of
ACTIVATIONS = "activations"  # stands for an array's name in the parts of a measure of activations


@dataclass(frozen=True)
class Status:
    """How much of a run is there.

    Attributes:
      present, expected: {measure: number of (array, step) pairs, or of steps for activations}.
      missing: {measure: the arrays or groups that lack some step, or the steps that lack}.
      former: what another version of a measure wrote, in words, which is not read; "" for nothing.
      unrecorded: what the version that wrote the run did not record, in words; "" for nothing.
    """

    present: dict[str, int]
    expected: dict[str, int]
    missing: dict[str, list[str]]
    former: str = ""
    unrecorded: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON holds them, and `complete`."""
        return {**dataclasses.asdict(self), "complete": self.complete}

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not any(self.missing.values())


def describe(folder: RunFolder) -> dict[str, Any]:
    """Return what `run.json` says.

    Raises:
      ResultsError: there is none, or another version wrote what this one cannot read.
    """
    described = folder.description()
    if described is None:
        raise ResultsError(
            f"{folder.path} holds no run: there is no run.json. "
            "Write one with `saturation measure TRAJECTORY --measures norms --out RUN`."
        )
    refuse_other_versions(folder, described)
    return described


def refuse_other_versions(folder: RunFolder, described: Mapping[str, Any]) -> None:
    """Raise `ResultsError` where another version wrote a `run.json` that this one cannot use."""
    lacking = [key for key in ("steps", "arrays", "bundles") if key not in described]
    if lacking:
        raise ResultsError(
            f"{folder.path}/{RUN_FILE} has no {' and no '.join(f'`{key}`' for key in lacking)}: "
            "another version of saturation wrote it. Measure into a new folder."
        )
    unknown = [name for name in described["measures"] if name not in MEASURES]
    if unknown:
        raise ResultsError(
            f"{folder.path} holds {', '.join(map(str, unknown))}, which this version of saturation "
            f"does not measure; it has {', '.join(MEASURES)}. Read the run with the version that "
            "wrote it."
        )


def former_measures(described: Mapping[str, Any]) -> str:
    """Return which measures of a run another version of them wrote, in words; "" for none."""
    said = []
    for measure in find_measures(described["measures"]):
        recorded = described.get("versions", {}).get(measure.name, 1)
        if recorded != measure.version:
            said.append(f"{measure.name} is of version {recorded}, and this is {measure.version}")
    return "; ".join(said)


def unrecorded(described: Mapping[str, Any]) -> str:
    """Return what the version that wrote a run did not record, in words; "" for nothing."""
    if described.get("identity_of") == IDENTITY:
        return ""
    return (
        "a former version wrote this run, which records one small matrix of its first and last "
        "checkpoint and no fingerprint of every checkpoint"
    )


def readable_measures(described: Mapping[str, Any]) -> list[Measure]:
    """Return the measures of a run that are this version's.

    What a metric means may differ between versions of a measure (CHANGELOG.md, *Breaking*), so that
    their numbers are never put into one table.
    """
    recorded = described.get("versions", {})
    measures = find_measures(described["measures"])
    return [measure for measure in measures if recorded.get(measure.name, 1) == measure.version]


def status(folder: RunFolder) -> Status:
    """Return what of a run is there and what is missing.

    Raises:
      ResultsError: the folder holds no run.
    """
    described = describe(folder)
    steps, parts = described["steps"], folder.parts()
    present, expected, missing = {}, {}, {}
    for measure in readable_measures(described):
        lacking = {
            name: missing_positions(steps, parts.get((measure.name, key), []))
            for key, names in part_keys(measure, described).items()
            for name in names
        }
        expected[measure.name] = len(steps) * len(lacking)
        present[measure.name] = expected[measure.name] - sum(map(len, lacking.values()))
        if isinstance(measure, ActivationMeasure):
            missing[measure.name] = [f"step {steps[i]}" for i in lacking[ACTIVATIONS]]
        else:
            missing[measure.name] = [name for name, positions in lacking.items() if positions]
    return Status(present, expected, missing, former_measures(described), unrecorded(described))


def part_keys(measure: Measure, described: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Return what the parts of a measure are filed under in a run, and what each of them holds."""
    if isinstance(measure, ActivationMeasure):
        return {ACTIVATIONS: (ACTIVATIONS,)}
    if isinstance(measure, GroupMeasure):
        shapes = {name: tuple(a["shape"]) for name, a in described["arrays"].items()}
        return {group: (group,) for group in measure.groups(shapes)}
    return described["bundles"]


def missing_positions(steps: Sequence[int], ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the positions of the steps that lie in no range (first step, last step)."""
    return [
        position
        for position, step in enumerate(steps)
        if not any(start <= step <= stop for start, stop in ranges)
    ]


def write_part(
    folder: RunFolder,
    measure: str,
    key: str,
    span: tuple[int, int],
    columns: Mapping[str, np.ndarray | Sequence[str] | Sequence[np.ndarray]],
) -> None:
    """Write one part: columns of one length, over the steps from `span[0]` to `span[1]`.

    Raises:
      ResultsError: the place is full or cannot be written.
    """
    folder.write(part_name(measure, key, *span), part_content(measure, key, columns))


def part_content(
    measure: str,
    key: str,
    columns: Mapping[str, np.ndarray | Sequence[str] | Sequence[np.ndarray]],
) -> bytes:
    """Return what the file of a part holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [_arrow(column) for column in columns.values()]
    fields = [(name, array.type) for name, array in zip(columns, arrays, strict=True)]
    schema = pa.schema(fields, metadata=_metadata(measure, key))
    table = pa.Table.from_arrays(arrays, schema=schema)
    # Texts repeat, numbers hardly do; nothing asks for least and greatest values.
    texts: Any = [name for name, kind in fields if kind == pa.string()]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=texts, write_statistics=False)
    return sink.getvalue().to_pybytes()


def _metadata(measure: str, key: str) -> dict[str | bytes, str | bytes]:
    return {"measure": measure, "key": key, "version": str(MEASURES[measure].version)}


def _arrow(column: np.ndarray | Sequence[str] | Sequence[np.ndarray]) -> Array:
    """Return a column as Arrow holds it, of numbers and texts from their bytes.

    `pyarrow.array` imports pandas, which streaming has no other need of: a third of a second, in
    which its threads would stand still.
    """
    import pyarrow as pa

    if len(column) and isinstance(column[0], np.ndarray):
        return pa.array(column)
    values = np.asarray(column)
    if values.dtype.kind != "U":
        buffer = pa.py_buffer(np.ascontiguousarray(values))
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])
    texts = [text.encode() for text in values.tolist()]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts))
    )


def read_part(
    folder: RunFolder, measure: Measure, key: str, span: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Return the columns of one part.

    Raises:
      ResultsError: the part is gone or damaged, or lacks what this version's measure reads.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = part_name(measure.name, key, *span)
    content = folder.read(name)
    if content is None:
        raise ResultsError(f"{folder.path}/{name} vanished while the run was read; try again.")
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(
            f"{folder.path}/{name} is damaged ({error}); delete it and run `saturation measure` "
            "again, which computes only that part."
        ) from error
    lacking = sorted(_columns(measure) - set(table.column_names))
    if lacking:
        raise ResultsError(
            f"{folder.path}/{name} lacks {', '.join(lacking)} of {measure.name}: another version "
            f"of saturation wrote it. Delete {folder.path}/parts/{measure.name} and run the same "
            "`saturation measure` again, which computes that anew."
        )
    return {column: table[column].to_numpy() for column in table.column_names}


def _columns(measure: Measure) -> set[str]:
    """Return what every part of a measure must hold."""
    if isinstance(measure, ActivationMeasure):
        return {"scope", *measure.statistics}
    if isinstance(measure, GroupMeasure):
        return {"step", "scope", *measure.statistics, *measure.vectors}
    return {"step", "array", *measure.statistics}
