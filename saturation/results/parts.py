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
from saturation.results.folder import RUN_FILE, RunFolder, part_name
from saturation.results.seal import LAYOUT, SEAL, part_seal, seal_of

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


def read_run_json(folder: RunFolder) -> dict[str, Any]:
    """Return what `run.json` says.

    Raises:
      ResultsError: there is none, or another version wrote what this one cannot read.
    """
    described = folder.read_description()
    if described is None:
        raise ResultsError(
            f"{folder.path} holds no run: there is no run.json. "
            "Write one with `saturation measure TRAJECTORY --measures norms --out RUN`."
        )
    refuse_other_versions(folder, described)
    return described


def refuse_other_versions(folder: RunFolder, described: Mapping[str, Any]) -> None:
    """Raise `ResultsError` where this version cannot use a `run.json`: another's, an edited one."""
    where = f"{folder.path}/{RUN_FILE}"
    lacking = [key for key in ("steps", "arrays", "bundles") if key not in described]
    if lacking:
        raise ResultsError(
            f"{where} has no {' and no '.join(f'`{key}`' for key in lacking)}: "
            "another version of saturation wrote it. Measure into a new folder."
        )
    layout = described.get("layout", 1)
    if not isinstance(layout, int) or not 1 <= layout <= LAYOUT:
        raise ResultsError(
            f"{where} is of layout {str(layout)[:40]!r}, and this version reads layouts up to "
            f"{LAYOUT}; read the run with the version that wrote it."
        )
    if (layout >= 2 and described.get(SEAL) != seal_of(described)) or not _is_whole(described):
        raise ResultsError(
            f"{where} was edited or damaged: it is not what `saturation measure` wrote. Restore "
            "it, or measure into a new folder."
        )
    unknown = [name for name in described["measures"] if name not in MEASURES]
    if unknown:
        raise ResultsError(
            f"{folder.path} holds {', '.join(map(str, unknown))}, which this version of saturation "
            f"does not measure; it has {', '.join(MEASURES)}. Read the run with the version that "
            "wrote it."
        )


def _is_whole(described: Mapping[str, Any]) -> bool:
    """Whether what is read of a `run.json` has the kinds that it must have."""
    steps, arrays, bundles = (described[key] for key in ("steps", "arrays", "bundles"))
    measures, versions = described["measures"], described.get("versions", {})
    identity = described.get("identity", {})
    return (
        isinstance(steps, list)
        and bool(steps)
        and all(type(step) is int and 0 <= step < 2**63 for step in steps)
        and steps == sorted(set(steps))
        and isinstance(arrays, dict)
        and all(_is_array(array) for array in arrays.values())
        and isinstance(bundles, dict)
        and all(isinstance(names, list) for names in bundles.values())
        and sorted(str(name) for names in bundles.values() for name in names) == sorted(arrays)
        and isinstance(measures, list)
        and bool(measures)
        and all(isinstance(name, str) for name in measures)
        and all(isinstance(one, dict) for one in (versions, identity))
    )


def _is_array(array: Any) -> bool:
    shape = array.get("shape") if isinstance(array, dict) else None
    return isinstance(shape, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in shape
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
    lacking = []
    if described.get("identity_of") != IDENTITY:
        lacking.append("no fingerprint of every checkpoint")
    if described.get("layout", 1) < LAYOUT:
        lacking.append("no seal of any part, so that its parts are unverified")
    if not lacking:
        return ""
    return f"a former version wrote this run, which has {' and '.join(lacking)}"


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
      ResultsError: the folder holds no run, or a part is not what it stands for.
    """
    described = read_run_json(folder)
    verify_parts(folder, described, readable_measures(described))
    return completeness(folder, described)


def completeness(folder: RunFolder, described: Mapping[str, Any]) -> Status:
    """Return the same by the parts' names alone, for who reads every part anyway."""
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
    described: Mapping[str, Any],
    measure: str,
    key: str,
    span: tuple[int, int],
    columns: Mapping[str, np.ndarray | Sequence[str] | Sequence[np.ndarray]],
) -> None:
    """Write one part: columns of one length, over the steps from `span[0]` to `span[1]`.

    `described` is the `run.json` of the folder.

    Raises:
      ResultsError: the place is full or cannot be written.
    """
    content = part_content(described, measure, key, span, columns)
    folder.write(part_name(measure, key, *span), content)


def part_content(
    described: Mapping[str, Any],
    measure: str,
    key: str,
    span: tuple[int, int],
    columns: Mapping[str, np.ndarray | Sequence[str] | Sequence[np.ndarray]],
) -> bytes:
    """Return what the file of a part holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [_arrow(column) for column in columns.values()]
    fields = [(name, array.type) for name, array in zip(columns, arrays, strict=True)]
    seal: dict[str | bytes, str | bytes] = {**part_seal(described, measure, key, span, columns)}
    schema = pa.schema(fields, metadata=seal)
    table = pa.Table.from_arrays(arrays, schema=schema)
    # Texts repeat, numbers hardly do; nothing asks for least and greatest values.
    texts: Any = [name for name, kind in fields if kind == pa.string()]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, use_dictionary=texts, write_statistics=False, write_page_checksum=True
    )
    return sink.getvalue().to_pybytes()


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
    folder: RunFolder,
    described: Mapping[str, Any],
    measure: Measure,
    key: str,
    span: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Return the columns of one part, which must be what it stands for.

    Raises:
      ResultsError: the part is gone or damaged, of another run or measure or other steps, or lacks
        what this version's measure reads.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = part_name(measure.name, key, *span)
    content = folder.read(name)
    if content is None:
        raise ResultsError(f"{folder.path}/{name} vanished while the run was read; try again.")
    sealed = described.get("layout", 1) >= LAYOUT
    try:
        # In this thread: a part is small, and Arrow's own threads outlive an error.
        table = pq.read_table(
            io.BytesIO(content), use_threads=False, page_checksum_verification=sealed
        )
        columns = {column: table[column].to_numpy() for column in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(folder, name, str(error).splitlines()[0]) from error
    lacking = sorted(_columns(measure) - set(columns))
    if lacking:
        raise ResultsError(
            f"{folder.path}/{name} lacks {', '.join(lacking)} of {measure.name}: another version "
            f"of saturation wrote it. Delete {folder.path}/parts/{measure.name} and run the same "
            "`saturation measure` again, which computes that anew."
        )
    if sealed:
        said = {
            k.decode(): v.decode(errors="replace") for k, v in (table.schema.metadata or {}).items()
        }
        expected = part_seal(described, measure.name, key, span, columns)
        for what, value in expected.items():
            if said.get(what) != value:
                raise _damaged(folder, name, _MISMATCH[what].format(said.get(what, "nothing")))
    unknown = set(columns.get("array", ())) - set(described["arrays"])
    if unknown:
        raise _damaged(folder, name, f"it names the array {min(unknown)!r}, which the run has not")
    return columns


# What is said of a part whose seal is not the one expected, by what differs.
_MISMATCH = {
    "measure": "it is a part of the measure {}",
    "key": "it is the part of {}",
    "version": "it is of version {} of the measure",
    "steps": "it holds the steps {}",
    "origin": "it was measured on other checkpoints or tokens than this run's: of another run",
    "values": "its values are not the ones that were written",
}


def _damaged(folder: RunFolder, name: str, reason: str) -> ResultsError:
    return ResultsError(
        f"{folder.path}/{name} is not the part it stands for ({reason}). Delete it and run the "
        "same `saturation measure` again, which computes only that part."
    )


def verify_parts(
    folder: RunFolder, described: Mapping[str, Any], measures: Sequence[Measure]
) -> None:
    """Read every part that these measures have in a run.

    Raises:
      ResultsError: one of them is not what it stands for.
    """
    parts = folder.parts()
    wanted = [
        (measure, key, span)
        for measure in measures
        for key in part_keys(measure, described)
        for span in parts.get((measure.name, key), [])
        if any(span[0] <= step <= span[1] for step in described["steps"])
    ]
    # One after the other: where several processes share a run, they read it together.
    for measure, key, span in wanted:
        read_part(folder, described, measure, key, span)


def _columns(measure: Measure) -> set[str]:
    """Return what every part of a measure must hold."""
    if isinstance(measure, ActivationMeasure):
        return {"scope", *measure.statistics}
    if isinstance(measure, GroupMeasure):
        return {"step", "scope", *measure.statistics, *measure.vectors}
    return {"step", "array", *measure.statistics}
