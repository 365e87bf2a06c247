"""Hostile input: damaged files of every format end in a clean error or in an answer.

A few hundred mutations are tried in every run, and 10,000 of each format under the marker `fuzz`
(docs/reliability.md has the command and the outcome).
"""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
from checkpoint_writers import (
    hugging_face,
    nested,
    t5_parameters,
    write_hugging_face,
    write_t5x,
    write_t5x_file,
    write_zarr,
    zarr_metadata,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoints_bundle import mesh_names, write_bundle
from test_checkpoints_torch import save, tensors, torch  # noqa: F401 (a fixture)

from saturation.checkpoints.arrays import flax_msgpack_index as msgpack_index
from saturation.checkpoints.arrays import safetensors, tensor_bundle, torch_pickle, zarr
from saturation.checkpoints.arrays.archive import Refused
from saturation.errors import CheckpointFormatError, SaturationError
from saturation.storage.local_folder import LocalFolder
from saturation.trajectory.trajectory import open_trajectory

SECONDS_PER_CASE = 20
EXTRA_MEMORY = 200 * 1024 * 1024
# Values that lengths, counts and offsets go wrong at.
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1)

NAMES = ("token_embedder/embedding", "encoder/layers_0/mlp/wo/kernel", "encoder/encoder_norm/scale")
ARRAYS = {name: t5_parameters()[name] for name in NAMES}


def write_placeholders(folder: Path) -> None:
    name = "target.token_embedder.embedding"
    write_zarr(folder / name, ARRAYS[NAMES[0]], zarr_metadata(ARRAYS[NAMES[0]], (7, 5), "zstd"))
    tree = {"target": nested({**ARRAYS, NAMES[0]: f"PLACEHOLDER://{name}"}), "state": {"step": 1}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def write_orbax(folder: Path, **options: bool) -> None:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, {"params": nested(ARRAYS)}, force=True)


def write_flax(folder: Path) -> None:
    tree = {"params": nested(ARRAYS)}
    (folder / "checkpoint_1").write_bytes(flax.serialization.msgpack_serialize(tree))


def write_safetensors(folder: Path, shards: int) -> None:
    shutil.rmtree(folder)
    write_hugging_face(folder, hugging_face(ARRAYS), shards)


WRITERS: dict[str, Callable[[Path], object]] = {
    "t5x": lambda folder: write_t5x(
        folder / "checkpoint_1", ARRAYS, lambda shape: [-(-size // 2) for size in shape]
    ),
    "t5x, one file": lambda folder: write_t5x_file(folder / "checkpoint_1", ARRAYS),
    "t5x-orbax, placeholders": write_placeholders,
    "orbax, OCDBT": lambda folder: write_orbax(folder, use_ocdbt=True),
    "orbax, folders": lambda folder: write_orbax(folder, use_ocdbt=False),
    "orbax, zarr 3": lambda folder: write_orbax(folder, use_ocdbt=False, use_zarr3=True),
    "safetensors": lambda folder: write_safetensors(folder, 1),
    "safetensors, shards": lambda folder: write_safetensors(folder, 2),
    "mesh-tensorflow": lambda folder: write_bundle(
        folder / "model.ckpt-1", mesh_names(ARRAYS, later=True)
    ),
    "flax": write_flax,
    "torch": lambda folder: None,
}


@pytest.fixture(scope="module", params=WRITERS)
def sample(request, tmp_path_factory) -> Path:
    """A small healthy checkpoint of one format."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    folder.mkdir()
    WRITERS[request.param](folder)
    return folder


@pytest.fixture
def healthy(sample, torch, request) -> Path:  # noqa: F811
    if not any(sample.iterdir()):
        save(sample / "pytorch_model.bin", tensors(hugging_face(ARRAYS)), torch)
        (sample / "config.json").write_text('{"model_type": "t5"}')
    return sample


@pytest.fixture(params=[True, False], ids=["checksums", "no checksums"])
def checksums(request, monkeypatch) -> None:
    """With checksums as they are, and with all of them right, so that what lies behind is tried."""
    if not request.param:
        monkeypatch.setattr(tensor_bundle, "crc32c", lambda data, so_far=0: 0)
        monkeypatch.setattr(tensor_bundle, "_unmasked", lambda stored: 0)
        monkeypatch.setattr(zipfile.ZipExtFile, "_update_crc", lambda *_: None)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to three small accidents or attacks on a file's bytes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        # Headers and footers matter most.
        span = chance.choice((len(changed), min(len(changed), 64), min(len(changed), 512)))
        at = chance.randrange(span + 1)
        at = len(changed) - at if chance.random() < 0.3 else at
        match chance.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + chance.randrange(1, 9)]
            case 4:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 5:
                layout = chance.choice(("<I", "<Q", ">I", "<H", "B"))
                value = chance.choice(EXTREMES) % (1 << 8 * struct.calcsize(layout))
                packed = struct.pack(layout, value)
                changed[at : at + len(packed)] = packed
            case _:
                # A number of a text, by another.
                digits = [i for i, byte in enumerate(changed) if 48 <= byte < 58]
                if digits:
                    place = chance.choice(digits)
                    changed[place : place + 1] = str(chance.choice((-1, *EXTREMES))).encode()
    return bytes(changed)


def read_all(folder: Path) -> str:
    """Open and read everything; return what came of it."""
    try:
        for checkpoint in open_trajectory(folder):
            for name, parameter in checkpoint.parameters.items():
                assert checkpoint.read(name).shape == parameter.shape
    except SaturationError:
        return "error"
    return "answer"


def attack(folder: Path, tmp_path: Path, seed: int, cases: int) -> dict[str, int]:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.stat().st_size]
    outcome = {"error": 0, "answer": 0}
    chance = random.Random(seed)

    def too_long(*_: object) -> None:
        raise TimeoutError(f"a case of seed {seed} takes more than {SECONDS_PER_CASE} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, too_long)
    try:
        for _ in range(cases):
            path = chance.choice(files)
            whole = path.read_bytes()
            path.write_bytes(mutated(whole, chance))
            signal.alarm(SECONDS_PER_CASE)
            outcome[read_all(copy)] += 1
            signal.alarm(0)
            path.write_bytes(whole)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert read_all(copy) == "answer"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < EXTRA_MEMORY
    return outcome


@pytest.mark.usefixtures("checksums")
def test_some_mutations_of_every_format(healthy, tmp_path):
    # Orbax draws the names and the layout of its files anew, so the same seed hits other bytes, and
    # fifteen cases may all fall where nothing is read; ten times fifteen do not.
    tried = (attack(healthy, tmp_path / str(seed), seed, cases=15) for seed in range(1, 11))
    assert any(outcome["error"] > 0 for outcome in tried)


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.usefixtures("checksums")
@pytest.mark.parametrize("seed", range(5))
def test_many_mutations_of_every_format(healthy, tmp_path, seed, request, record_property):
    outcome = attack(healthy, tmp_path, seed=1000 + seed, cases=1000)
    record_property("outcome", outcome)
    print(request.node.callspec.id, outcome)


def folder_with(tmp_path_factory, data: bytes) -> LocalFolder:
    folder = tmp_path_factory.mktemp("bytes", numbered=True)
    (folder / "file").write_bytes(data)
    return LocalFolder(folder)


READERS = {
    "msgpack": (b"\x81\xa1w", lambda folder: msgpack_index.read_index(folder, "file")),
    "safetensors": (
        struct.pack("<Q", 40) + b'{"w":{"dtype":"F32","shape":[',
        lambda folder: safetensors.read_header(folder, "file"),
    ),
    "bundle": (b"", lambda folder: tensor_bundle.read_index(folder, "file")),
    "archive": (b"PK\x03\x04", lambda folder: torch_pickle.read_archive(folder, "file")),
}


@pytest.mark.parametrize("reader", READERS)
@given(tail=st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_refused_or_read(tmp_path_factory, reader, tail):
    beginning, read = READERS[reader]
    with contextlib.suppress(CheckpointFormatError):
        read(folder_with(tmp_path_factory, beginning + tail))


@given(program=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_pickle_is_refused_or_interpreted(program):
    # What `read_archive` turns into its own error.
    with contextlib.suppress(Refused, struct.error, ValueError):
        torch_pickle._Machine(b"\x80\x02" + program).run()


@given(
    data=st.binary(max_size=100), size=st.integers(0, 2**40), kind=st.sampled_from(["gzip", "zstd"])
)
@settings(max_examples=100, deadline=None)
def test_nothing_unpacks_to_more_than_declared(data, size, kind):
    with contextlib.suppress(CheckpointFormatError):
        assert len(zarr.decompress("chunk", kind, data, size)) == size


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_is_not_unpacked(kind):
    if kind == "gzip":
        import gzip

        bomb = gzip.compress(bytes(50_000_000))
    else:
        import pyarrow as pa

        bomb = pa.Codec("zstd").compress(bytes(50_000_000)).to_pybytes()
    assert zarr.decompress("chunk", kind, bomb, 50_000_000) == bytes(50_000_000)
    with pytest.raises(CheckpointFormatError, match="chunk is truncated or damaged: "):
        zarr.decompress("chunk", kind, bomb, 1000)
    with pytest.raises(CheckpointFormatError, match="cannot hold"):
        zarr.decompress("chunk", kind, bomb, 2**50)


def test_a_healthy_sample_reads_as_it_was_written(healthy):
    checkpoint = next(iter(open_trajectory(healthy)))
    for name in NAMES:
        np.testing.assert_array_equal(checkpoint.read(name), ARRAYS[name])
