"""Files made to hang a reader or to fill the memory: each is refused, soon and cheaply.

Random damage does not find these: each is well-formed in every byte but for what it demands. They
are opened in a process of its own, whose time and memory are measured.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import google_crc32c as crc32c
import msgpack
import numpy as np
import pytest
from test_checkpoints_bundle import masked, varint

SECONDS = 20
EXTRA_MEMORY = 200 * 2**20

# Opens a folder, reads all of it, and prints how much memory that took beyond the imports.
READ_ALL = """
import resource, sys, time
import numpy, ml_dtypes, pyarrow, tensorstore
from saturation.errors import SaturationError
from saturation.trajectory.trajectory import open_trajectory
from saturation.scopes import scopes

def peak():
    try:
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # not on Linux, whose ru_maxrss begins with that of the parent
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
try:
    for checkpoint in open_trajectory(sys.argv[1]):
        scopes(checkpoint.parameters)
        for name in checkpoint.parameters:
            checkpoint.read(name)
    text = "read"
except SaturationError as error:
    text = f"refused: {error}"
print(peak() - before)
print(text)
"""


def attack(folder: Path) -> str:
    """What comes of reading a folder, in bounded time and memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    extra, text = done.stdout.split("\n", 1)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert int(extra) < size + EXTRA_MEMORY, f"{int(extra):,} bytes for a file of {size:,}: {text}"
    assert len(text) < 2000, "the sentence is too long"
    return text


# -- PyTorch archives -----------------------------------------------------------------------------


def write_archive(folder: Path, program: bytes) -> Path:
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return folder


# (), and then forty times a pair of what was made before: 2^40 tuples in few bytes.
DOUBLED = b"\x80\x02)" + b"q\x00h\x00\x86" * 40


@pytest.mark.parametrize(
    "program",
    [
        DOUBLED + b"Q.",
        DOUBLED + b"\x8c\x01a\x93.",
        b"\x80\x02(" + DOUBLED[2:] + b"\x8c\x01a\x93.",
        DOUBLED + b"q\x01ctorch._utils\n_rebuild_tensor_v2\n((" + b"X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00h\x01h\x01tR.",
        DOUBLED + b"q\x01}h\x01K\x01s.",
    ],
    ids=["storage", "name", "name behind a mark", "shape", "key"],
)
def test_a_pickle_that_unfolds_for_ever(tmp_path, program):
    assert attack(write_archive(tmp_path, program)).startswith("refused: ")


def test_a_pickle_that_makes_ever_more(tmp_path):
    assert attack(write_archive(tmp_path, b"\x80\x02" + b"}" * 5_000_000 + b".")).startswith(
        "refused: "
    )


def test_an_archive_of_very_many_members(tmp_path):
    # 46 bytes of the central directory each, all of one name.
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *(20, 0, 20, 0), *(0,) * 14)[:46]
    count = 600_000
    data = b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(64)
    directory = entry * count
    end64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(data)
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "pytorch_model.bin").write_bytes(data + directory + end64 + locator + end)
    assert attack(tmp_path).startswith("refused: ")


# -- tables and indices ---------------------------------------------------------------------------


def test_a_table_whose_keys_grow_with_every_entry(tmp_path):
    entries = bytearray()
    for shared in range(150_000):
        entries += varint(shared) + b"\x01\x00a"
    block = bytes(entries) + struct.pack("<II", 0, 1)

    def stored(data: bytes) -> bytes:
        return data + b"\0" + struct.pack("<I", masked(crc32c.value(data + b"\0")))

    def handle(start: int, size: int) -> bytes:
        return varint(start) + varint(size)

    data = stored(block)
    place = handle(0, len(block))
    index = b"\x00\x01" + varint(len(place)) + b"a" + place + struct.pack("<II", 0, 1)
    footer = handle(0, 0) + handle(len(data), len(index))
    data += stored(index) + footer + bytes(40 - len(footer)) + struct.pack("<Q", 0xDB4775248B80FB57)
    (tmp_path / "model.ckpt-1.index").write_bytes(data)
    assert attack(tmp_path).startswith("refused: ")


JSONS = {
    "objects": b'{"a":%s}' % (b"[" + b"{}," * 4_000_000 + b"{}]"),
    "lists": b'{"a":%s}' % (b"[" + b"[]," * 4_000_000 + b"[]]"),
    "names": b"{%s}" % b",".join(b'"%x":0' % number for number in range(1_300_000)),
    "depth": b'{"a":' * 3_000_000,
}


OTHERS = ("config.json", "index", "_METADATA", ".zarray")


@pytest.mark.parametrize(
    ("file", "kind"),
    [*(("model.safetensors", kind) for kind in JSONS), *((file, "objects") for file in OTHERS)],
)
def test_json_that_takes_far_more_memory_than_its_text(tmp_path, file, kind):
    header = JSONS[kind]
    healthy = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    safetensors = struct.pack("<Q", len(healthy)) + healthy + bytes(4)
    if file == "model.safetensors":
        (tmp_path / file).write_bytes(struct.pack("<Q", len(header)) + header)
    elif file == "index":
        (tmp_path / "model.safetensors.index.json").write_bytes(header)
        (tmp_path / "model-00001-of-00001.safetensors").write_bytes(safetensors)
    elif file == ".zarray":
        (tmp_path / "checkpoint").write_bytes(
            msgpack.packb({"target": {"w": "PLACEHOLDER://target.w"}, "state": {}})
        )
        (tmp_path / "target.w").mkdir()
        (tmp_path / "target.w" / ".zarray").write_bytes(header)
    else:
        (tmp_path / file).write_bytes(header)
        (tmp_path / "model.safetensors").write_bytes(safetensors)
        if file == "_METADATA":
            (tmp_path / "model.safetensors").unlink()
    assert attack(tmp_path).startswith("refused: ")


def test_a_msgpack_file_of_very_many_arrays(tmp_path):
    array = b"\xc7\x0a\x01" + b"\x93\x91\x00" + b"\xa4int8" + b"\xc4\x00"
    count = 900_000
    leaves = b"\xdd" + struct.pack(">I", count) + array * count
    head = b"\x82\xa7version\x03\xa9optimizer\x81\xa6target\x81\xa1w"
    (tmp_path / "checkpoint").write_bytes(head + leaves)
    assert attack(tmp_path).startswith("refused: ")


# -- names and shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["embed" * 30_000 + "!", "a" * 200_000, "block_" * 30_000],
    ids=["embed", "a", "block"],  # pytest hands a test's name to processes, which have no such room
)
@pytest.mark.parametrize("form", ["safetensors", "flax"])
def test_a_name_that_patterns_take_for_ever_to_match(tmp_path, name, form):
    if form == "safetensors":
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        data = struct.pack("<Q", len(header)) + header + bytes(4)
        (tmp_path / "model.safetensors").write_bytes(data)
    else:
        from flax.serialization import msgpack_serialize

        (tmp_path / "checkpoint_1").write_bytes(
            msgpack_serialize({"params": {name: np.ones(3, np.float32)}})
        )
    assert attack(tmp_path).startswith("refused: ")


@pytest.mark.parametrize("shape", [[16, 2**40, 24], [16, 2**61, 0]])
def test_stacked_layers_without_end(tmp_path, shape):
    name = "target.encoder.encoder.mlp.wi.kernel"
    (tmp_path / "checkpoint").write_bytes(
        msgpack.packb(
            {
                "target": {
                    "encoder": {"encoder": {"mlp": {"wi": {"kernel": f"PLACEHOLDER://{name}"}}}}
                },
                "state": {},
            }
        )
    )
    (tmp_path / name).mkdir()
    meta = {"zarr_format": 2, "shape": shape, "chunks": [16, 1, 24], "dtype": "<f4"}
    (tmp_path / name / ".zarray").write_text(json.dumps({**meta, "compressor": None}))
    assert attack(tmp_path).startswith("refused: ")


def test_an_array_that_is_nowhere_but_in_its_description(tmp_path):
    keys = [{"key": "params", "key_type": 2}, {"key": "w", "key_type": 2}]
    leaf = {"key_metadata": keys, "value_metadata": {"value_type": "jax.Array"}}
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {"('params', 'w')": leaf}}))
    (tmp_path / "params.w").mkdir()
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [2**31],
        "data_type": "float32",
        "fill_value": 1.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**20]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    (tmp_path / "params.w" / "zarr.json").write_text(json.dumps(meta))
    assert f"{tmp_path}/params.w/c/0 is missing: " in attack(tmp_path)
