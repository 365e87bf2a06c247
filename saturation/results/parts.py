"""The parts of a run: Parquet tables of a measure's statistics, written and read.

A measure of weights has a series of parts for each bundle of arrays, one of groups of arrays for
each group, one of activations a part for each step.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import ResultsError
from saturation.measures.base import ActivationMeasure, GroupMeasure, Measure
from saturation.results.folder import RunFolder, part_name
from saturation.results.seal import LAYOUT, part_seal

if TYPE_CHECKING:
    from pyarrow import Array

ACTIVATIONS = "activations"  # stands for an array's name in the parts of a measure of activations


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


def _columns(measure: Measure) -> set[str]:
    """Return what every part of a measure must hold."""
    if isinstance(measure, ActivationMeasure):
        return {"scope", *measure.statistics}
    if isinstance(measure, GroupMeasure):
        return {"step", "scope", *measure.statistics, *measure.vectors}
    return {"step", "array", *measure.statistics}
