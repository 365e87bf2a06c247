"""What lies beside the checkpoints of a pretraining: what it is, and its log.

All of it on a local disk (a `Path`) or in a bucket (an `epath.Path`, as Orbax takes it).

- OUT/0, OUT/1, …: the trajectory, one folder a checkpoint
- OUT/pretrain.json: configuration, text, vocabulary, and the versions of each session
- OUT/sentencepiece.model or OUT/tokenizer.json: the vocabulary, unless it is of bytes
- OUT/log.csv: loss, learning rate and norm
- OUT/resume/: where an interrupted run stopped between two checkpoints
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from etils import epath

from saturation.errors import ConfigError, ResultsError
from saturation.storage.local_files import read_regular, refuse_impossible
from saturation.storage.write import Files, write_whole

RECORD = "pretrain.json"
LOG = "log.csv"

COLUMNS = ("step", "loss", "perplexity", "learning_rate", "norm")


OutputPath = Path | epath.Path


def open_place(out: str) -> OutputPath:
    """Return the folder or bucket that a pretraining writes to.

    Raises:
        ConfigError: when Orbax does not write to such a place.
        ResultsError: when what it needs is not installed.
    """
    if not in_bucket(out):
        try:
            refuse_impossible(out)
        except OSError as error:
            raise ConfigError(f"out: {error.strerror}.") from error
        return Path(out)
    if not out.startswith("gs://"):
        raise ConfigError(f"out: {out}: a pretraining writes to a local folder or to gs://.")
    return epath.Path(Files(out).path)


def in_bucket(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL: files there are written whole, and never added to."""
    return "://" in os.fspath(place)


@contextlib.contextmanager
def writing_to(folder: OutputPath) -> Iterator[None]:
    """Turn the operating system's refusal to write into a sentence that names the folder."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ResultsError(
            f"{folder}: the pretraining cannot be written ({reason}). What was saved before is "
            "intact: make room or set another `out`, and start again to go on."
        ) from error


def check_identity(folder: OutputPath, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another pretraining than the one to write there.

    Args:
        folder: of the pretraining; it need not exist.
        identity: all that decides the trajectory, as nested dicts of JSON values.

    Raises:
        ResultsError: when it was written under another identity, or by something else.
    """
    record = read_record(folder)
    if record is None and _holds_checkpoints(folder):
        raise ResultsError(
            f"{folder}: holds checkpoints but no {RECORD} that says of what; set another `out`."
        )
    before, now = _flatten(record or identity), _flatten(identity)
    for key in sorted(before.keys() | now.keys()):
        if not key.startswith("sessions") and before.get(key) != now.get(key):
            raise ResultsError(
                f"{folder}: holds another pretraining, with {key} = {before.get(key)!r} where now "
                f"it would be {now.get(key)!r}; set another `out`, or remove the folder."
            )


def _holds_checkpoints(folder: OutputPath) -> bool:
    try:
        return any(path.name.isdigit() for path in folder.glob("*"))
    except FileNotFoundError as error:  # of a bucket; of a folder that does not exist there is none
        raise ResultsError(f"{folder}: there is no such bucket; set another `out`.") from error


def start_session(folder: OutputPath, identity: Mapping[str, Any], step: int, device: str) -> None:
    """Record what this folder holds, and that a session goes on with it.

    Args:
        folder: of the pretraining, which `check_identity` let pass.
        identity: all that decides the trajectory.
        step: where this session starts.
        device: what it runs on, in words.

    Raises:
        ResultsError: when it cannot be written.
    """
    record = read_record(folder) or {**identity, "sessions": []}
    record["sessions"].append({"from_step": step, "device": device, "versions": versions()})
    with writing_to(folder):
        _write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def keep_vocabulary(folder: OutputPath, file: tuple[str, bytes] | None) -> None:
    """Leave the vocabulary's file, where it has one, beside the checkpoints whose ids it made.

    Args:
        folder: of the pretraining.
        file: name and contents; `saturation measure` finds it by that name.

    Raises:
        ResultsError: when it cannot be written.
    """
    if file is not None:
        name, content = file
        with writing_to(folder):
            _write(folder / name, content)


def read_record(folder: OutputPath) -> dict[str, Any] | None:
    """The contents of pretrain.json, or None where there is none.

    Raises:
        ResultsError: when it is damaged.
    """
    try:
        content = _read(folder, RECORD)
        if content is None:
            return None
        record = json.loads(content)
        sessions = record.get("sessions") if isinstance(record, dict) else None
        if not isinstance(sessions, list):
            raise _no_record(folder)
        return record
    except (OSError, ValueError, RecursionError) as error:
        raise _no_record(folder) from error


def _read(folder: OutputPath, name: str) -> bytes | None:
    """Return what a file of a pretraining holds, or None where there is none."""
    if in_bucket(folder):
        return Files(folder).read(name)
    try:
        return read_regular(folder / name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _no_record(folder: OutputPath) -> ResultsError:
    return ResultsError(
        f"{folder / RECORD}: expected the record of a pretraining; it is damaged or it cannot "
        "be read. Restore it, or set another `out`."
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the bits of the result."""
    found = {"python": platform.python_version()}
    for name in ("saturation-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        with contextlib.suppress(PackageNotFoundError):  # a source tree that is not installed
            found[name] = version(name)
    return found


def _write_text(path: OutputPath, text: str) -> None:
    _write(path, text.encode())


def _write(path: OutputPath, content: bytes) -> None:
    if in_bucket(path):
        Files(path.parent).write(path.name, content)
    else:
        write_whole(Path(path), lambda file: file.write(content))


def read_log(folder: OutputPath) -> list[tuple[int, str]]:
    """Return (step, line) of each row of log.csv; none where there is no such file.

    Raises:
        ResultsError: when it is damaged.
    """
    try:
        lines = (_read(folder, LOG) or b"").decode().splitlines(keepends=True)
        if lines and lines[0].strip() != ",".join(COLUMNS):
            raise ValueError(f"line 1 is {lines[0][:60]!r}")
        rows = [line for line in lines[1:] if line.endswith("\n")]  # a kill may tear the last
        return [(_step(number, line), line) for number, line in enumerate(rows, start=2)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultsError(
            f"{folder / LOG}: expected the log of a pretraining, with the columns "
            f"{', '.join(COLUMNS)}; it is damaged ({reason}). Restore it, or remove it: the rows "
            "of steps that were made are then lost, and nothing else."
        ) from error


def _step(number: int, line: str) -> int:
    cells = line.split(",")
    try:
        if len(cells) != len(COLUMNS):
            raise ValueError
        return [int(cells[0]), *map(float, cells[1:])][0]
    except ValueError as error:
        raise ValueError(f"line {number} is {line[:60]!r}") from error


class Log:
    """log.csv: one row an update, or every few.

    A row holds `step` (updates so far), `loss` in nats on the batch of that update (before it),
    `perplexity` = exp(loss), the `learning_rate` of the update, and `norm` of the parameters after
    it. Rows are on the disk before the checkpoint of their step is, so that cutting the file at
    the checkpoint that a run resumes from leaves neither gap nor repetition.

    In a bucket, where nothing can be added to a file, all rows are written again with each
    checkpoint.

    Args:
        folder: of the pretraining.
        step: the last step whose rows are kept.
    """

    def __init__(self, folder: OutputPath, step: int) -> None:
        self._path = folder / LOG
        kept = [line for number, line in read_log(folder) if number <= step]
        self._lines = [",".join(COLUMNS) + "\n", *kept]
        with writing_to(folder):
            _write_text(self._path, "".join(self._lines))

    def append(self, rows: list[dict[str, float]]) -> None:
        """Add rows of step, loss, learning_rate and norm; on a local disk they are there then."""
        lines = [_line(row) for row in rows]
        if in_bucket(self._path):
            self._lines += lines
            return
        with writing_to(self._path.parent), self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def keep(self) -> None:
        """See that all rows are where they belong."""
        if in_bucket(self._path):
            _write_text(self._path, "".join(self._lines))


def _line(row: Mapping[str, float]) -> str:
    # Nine digits tell any two float32 apart; exp overflows where a diverged loss exceeds 709.
    perplexity = math.exp(row["loss"]) if row["loss"] < 709 else math.inf
    values = [row["loss"], perplexity, row["learning_rate"], row["norm"]]
    return f"{row['step']:d}," + ",".join(f"{value:.9g}" for value in values) + "\n"
