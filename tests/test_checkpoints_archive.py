"""The bytes of PyTorch archives are verified, and every way that torch keeps a tensor is read."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import saturation
from saturation.checkpoints import open_checkpoint
from saturation.checkpoints.arrays import archive
from saturation.checkpoints.arrays.archive import Archive, combine_crc32
from saturation.cli.commands import app
from saturation.errors import CheckpointFormatError
from saturation.storage.local_folder import LocalFolder
from saturation.trajectory.audit import audit

# The pickles are written by hand, instruction by instruction, since torch is not installed.
MARK, TUPLE, EMPTY_TUPLE, REDUCE, PERSISTENT = b"(", b"t", b")", b"R", b"Q"
ORDERED = b"ccollections\nOrderedDict\n" + EMPTY_TUPLE + REDUCE


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def named(name: str) -> bytes:
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"


def tupled(*values: bytes) -> bytes:
    return MARK + b"".join(values) + TUPLE


def storage(kind: str, key: str, count: int) -> bytes:
    parts = (text("storage"), named(kind), text(key), text("cpu"), number(count))
    return tupled(*parts) + PERSISTENT


def view(kept: bytes, shape: tuple[int, ...], strides: tuple[int, ...], *more: bytes) -> bytes:
    sizes = (tupled(*map(number, each)) for each in (shape, strides))
    return tupled(kept, number(0), *sizes, b"\x89", ORDERED, *more)


def tensor(kept: bytes, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    return named("torch._utils._rebuild_tensor_v2") + view(kept, shape, strides) + REDUCE


def write(path: Path, entries: dict[str, bytes], storages: dict[str, bytes]) -> Path:
    program = b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
    return path


VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
PLAIN = tensor(storage("torch.FloatStorage", "0", 12), (3, 4), (4, 1))
MATRIX = {"w.weight": PLAIN}


def damaged(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def test_a_flipped_bit_is_an_error_of_reading_and_a_finding_of_the_audit(tmp_path):
    flipped = VALUES.copy()
    flipped[2, 3] = 1e30
    for step in (0, 1):
        write(tmp_path / f"step_{step}" / "pytorch_model.bin", MATRIX, {"0": VALUES.tobytes()})
    path = tmp_path / "step_1" / "pytorch_model.bin"
    damaged(path, VALUES.tobytes(), flipped.tobytes())
    checkpoint = open_checkpoint(path.parent)
    for index in (None, (slice(0, 1),), (slice(None), slice(1, 2))):
        with pytest.raises(CheckpointFormatError, match="its member 'archive/data/0' is damaged"):
            checkpoint.read("w/weight", index)
    (finding,) = audit(saturation.open_trajectory(tmp_path), full=True)
    assert (finding.kind, finding.steps) == ("damaged", (1,))


def test_a_member_that_is_no_parameter_is_verified_by_the_full_audit(tmp_path):
    entries = {**MATRIX, "mask": tensor(storage("torch.LongStorage", "1", 2), (2,), (1,))}
    codes = np.array([3, 4], np.int64)
    storages = {"0": VALUES.tobytes(), "1": codes.tobytes()}
    path = write(tmp_path / "pytorch_model.bin", entries, storages)
    damaged(path, codes.tobytes(), (codes + 1).tobytes())
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("w/weight"), VALUES)
    with pytest.raises(CheckpointFormatError, match="its member 'archive/data/1' is damaged"):
        open_checkpoint(tmp_path).verify()


def test_large_members_are_verified_in_pieces_by_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_PIECE", 1000)
    rows = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
    entries = {"w.weight": tensor(storage("torch.FloatStorage", "0", rows.size), (300, 9), (9, 1))}
    path = write(tmp_path / "pytorch_model.bin", entries, {"0": rows.tobytes()})
    read = open_checkpoint(tmp_path).read("w/weight", (slice(10, 20),))
    np.testing.assert_array_equal(read, rows[10:20])
    # A flip far from what is read.
    damaged(path, rows[250:].tobytes(), (rows[250:] * np.float32(1.5)).tobytes())
    with pytest.raises(CheckpointFormatError, match="is damaged"):
        open_checkpoint(tmp_path).read("w/weight", (slice(10, 20),))


class Far(LocalFolder):
    """A folder whose every read would be a request."""

    remote = True

    def __init__(self, path):
        super().__init__(path)
        self.total = 0

    def _read(self, name: str, start: int, stop: int) -> bytes:
        self.total += stop - start
        return super()._read(name, start, stop)

    def _read_into(self, name: str, start: int, buffer: memoryview) -> int:
        self.total += len(buffer)
        return super()._read_into(name, start, buffer)


@pytest.mark.parametrize("bad", [False, True])
def test_over_a_network_nothing_is_read_twice(tmp_path, bad):
    rows = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
    entries = {"w.weight": tensor(storage("torch.FloatStorage", "0", rows.size), (300, 9), (9, 1))}
    path = write(tmp_path / "pytorch_model.bin", entries, {"0": rows.tobytes()})
    if bad:
        damaged(path, rows[299:].tobytes(), (rows[299:] * np.float32(1.5)).tobytes())
    folder = Far(tmp_path)
    checkpoint, before = open_checkpoint(folder), folder.total
    # Blocks may come in any order.
    for start, stop in ((100, 200), (0, 100)):
        checkpoint.read("w/weight", (slice(start, stop),))
    if bad:
        with pytest.raises(CheckpointFormatError, match="is damaged"):
            checkpoint.read("w/weight", (slice(200, 300),))
    else:
        checkpoint.read("w/weight", (slice(200, 300),))
    assert folder.total - before == rows.nbytes


@pytest.mark.parametrize(
    ("offset", "change"),
    [(8, b"\x08\x00"), (14, b"\1\2\3\4"), (22, b"\1\0\0\0"), (30, b"another"), (6, b"\x00\x08")],
    ids=["method", "checksum", "size", "name", "flags"],
)
def test_headers_that_do_not_agree_are_refused(tmp_path, offset, change):
    path = write(tmp_path / "pytorch_model.bin", MATRIX, {"0": VALUES.tobytes()})
    with zipfile.ZipFile(path) as file:
        begin = file.getinfo("archive/data/0").header_offset + offset
    data = bytearray(path.read_bytes())
    data[begin : begin + len(change)] = change
    path.write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="different things of 'archive/data/0'"):
        open_checkpoint(tmp_path)


def without_checksums(path: Path, *members: str) -> Path:
    """Write 0 for the checksums of an archive's members, all by default, in both headers."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            if not members or entry.filename in members:
                assert data.count(struct.pack("<I", entry.CRC)) == 2
                data = data.replace(struct.pack("<I", entry.CRC), bytes(4))
    path.write_bytes(data)
    return path


def printed(command: str, path: Path, *options: str) -> str:
    result = CliRunner().invoke(app, [command, str(path), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("kept", ["as it is", "through strides"])
def test_an_archive_without_checksums_is_read_and_said(tmp_path, kept):
    """torch.serialization.set_crc32_options(False) writes 0 for each."""
    strided = tensor(storage("torch.FloatStorage", "0", 12), (4, 3), (1, 4))
    entries = MATRIX if kept == "as it is" else {"w.weight": strided}
    for step in (0, 1, 2):
        values = VALUES + step
        path = write(
            tmp_path / f"step_{step}" / "pytorch_model.bin", entries, {"0": values.tobytes()}
        )
        if step:
            without_checksums(path)
    for step in (0, 1, 2):
        checkpoint = open_checkpoint(tmp_path / f"step_{step}")
        expected = VALUES + step if kept == "as it is" else (VALUES + step).T
        np.testing.assert_array_equal(checkpoint.read("w/weight"), expected)
        checkpoint.verify()
        assert checkpoint.unsummed == (("pytorch_model.bin",) if step else ())

    said = printed("audit", tmp_path, "--full").splitlines()
    assert said[0].startswith("checksums: none in pytorch_model.bin of 2 of 3 checkpoints")
    assert said[1].endswith("3 checkpoints, nothing found wrong.")
    (line,) = [one for one in printed("ls", tmp_path).splitlines() if "checksums" in one]
    assert "none in pytorch_model.bin of 2 of 3 checkpoints" in line
    for command in ("audit", "ls"):
        found = json.loads(printed(command, tmp_path, "--json"))["without_checksums"]
        assert found == {"1": ["pytorch_model.bin"], "2": ["pytorch_model.bin"]}


def test_an_archive_with_checksums_says_nothing_of_them(tmp_path):
    write(tmp_path / "step_0" / "pytorch_model.bin", MATRIX, {"0": VALUES.tobytes()})
    for command in ("audit", "ls"):
        assert "checksums: " not in (said := printed(command, tmp_path))
        assert "checksums  " not in said


@pytest.mark.parametrize("member", ["archive/data/0", "archive/data.pkl"])
def test_where_some_members_have_checksums_0_is_one(tmp_path, member):
    path = write(tmp_path / "pytorch_model.bin", MATRIX, {"0": VALUES.tobytes()})
    without_checksums(path, member)
    with pytest.raises(CheckpointFormatError, match=f"its member '{member}' is damaged"):
        open_checkpoint(tmp_path).read("w/weight")


def test_sizes_that_follow_the_bytes(tmp_path):
    """torch writes through a stream, and so leaves the header before the bytes empty."""

    class Stream(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:  # pyright: ignore
        file.writestr("archive/data/0", VALUES.tobytes())
    (tmp_path / "x").write_bytes(stream.data)
    member = Archive(LocalFolder(tmp_path), "x").member("archive/data/0")
    assert member.read() == VALUES.tobytes()


def test_checksums_of_two_texts_are_put_together():
    data = np.random.default_rng(0).bytes(5000)
    for cut in (0, 1, 7, 2500, 4999, 5000):
        first, second = data[:cut], data[cut:]
        found = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
        assert found == zlib.crc32(data)


# -- how torch keeps tensors ----------------------------------------------------------------------

FLOAT8 = VALUES.astype(ml_dtypes.float8_e4m3fn)
V3 = named("torch._utils._rebuild_tensor_v3") + view(
    storage("torch.storage.UntypedStorage", "1", 12), (3, 4), (4, 1), named("torch.float8_e4m3fn")
)
KEPT = {
    "float8": (V3 + REDUCE, FLOAT8),
    "expanded": (
        tensor(storage("torch.FloatStorage", "0", 12), (5, 4), (0, 1)),
        np.broadcast_to(VALUES[:1], (5, 4)),
    ),
    "transposed": (tensor(storage("torch.FloatStorage", "0", 12), (4, 3), (1, 4)), VALUES.T),
    "a buffer": (
        named("torch._tensor._rebuild_from_type_v2")
        + tupled(
            named("torch._utils._rebuild_tensor_v2"),
            named("torch.nn.parameter.Buffer"),
            view(storage("torch.FloatStorage", "0", 12), (3, 4), (4, 1)),
            b"}",
        )
        + REDUCE,
        VALUES,
    ),
}
SPARSE = named("torch._utils._rebuild_sparse_tensor") + tupled(b"N", b"N") + REDUCE
BESIDE = {
    "sparse": (SPARSE, "a sparse tensor is not read here"),
    "complex": (
        tensor(storage("torch.ComplexFloatStorage", "2", 6), (2, 3), (3, 1)),
        "not real floating point (complex64)",
    ),
    "size": (named("torch.Size") + tupled(tupled(number(3))) + REDUCE, None),
    "device": (named("torch.device") + tupled(text("cpu")) + REDUCE, None),
    "type": (named("torch.float16"), None),
}
STORAGES = {"0": VALUES.tobytes(), "1": FLOAT8.tobytes(), "2": bytes(48)}


@pytest.mark.parametrize("kind", KEPT)
def test_every_way_that_torch_keeps_a_tensor(tmp_path, kind):
    program, values = KEPT[kind]
    write(tmp_path / "pytorch_model.bin", {"w.weight": program}, STORAGES)
    read = open_checkpoint(tmp_path).read("w/weight")
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read.astype(float), values.astype(float))


@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights(tmp_path, kind):
    program, reason = BESIDE[kind]
    write(tmp_path / "pytorch_model.bin", {**MATRIX, "x.extra": program}, STORAGES)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.parameters) == ["w/weight"]
    assert dict(checkpoint.left_out) == ({} if reason is None else {"x.extra": reason})


def test_a_sparse_weight_is_refused(tmp_path):
    write(tmp_path / "pytorch_model.bin", {**MATRIX, "x.weight": SPARSE}, STORAGES)
    with pytest.raises(CheckpointFormatError, match=r"'x\.weight' is a weight and cannot be read"):
        open_checkpoint(tmp_path)


def test_what_repeats_its_elements_for_ever_is_refused(tmp_path):
    bomb = tensor(storage("torch.FloatStorage", "0", 12), (2**20, 2**10), (0, 0))
    write(tmp_path / "pytorch_model.bin", {"w.weight": bomb}, STORAGES)
    with pytest.raises(CheckpointFormatError, match="repeats elements beyond the file's size"):
        open_checkpoint(tmp_path)
