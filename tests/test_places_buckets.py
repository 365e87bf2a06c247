"""Buckets of any kind: who is let in, every format through fsspec, and S3 where moto is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_writers import nested, t5_parameters, write_t5x, write_t5x_file
from fsspec.implementations.memory import MemoryFileSystem
from made_trajectory import write_trajectory

from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.storage import places
from saturation.storage.places import Bucket, File
from saturation.storage.places import nested as nested_listing
from saturation.trajectory.trajectory import open_trajectory

STEPS = (0, 10, 30)


class Guarded(MemoryFileSystem):
    """A file system in memory that lets nobody in without a name."""

    protocol = "guarded"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False

    def __init__(self, name: str = "", **options: object):
        super().__init__(**options)
        self.name = name

    def ls(self, path: str, detail: bool = True, **options: object):
        if self.name != "user":
            raise PermissionError("nobody may list this")
        return super().ls(path, detail, **options)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Guarded:
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    return Guarded("user")


def assert_same(found, expected) -> None:
    assert found.steps == expected.steps
    for one, other in zip(found, expected, strict=True):
        assert one.parameters == other.parameters
        for name in other.parameters:
            np.testing.assert_array_equal(one.read(name), other.read(name))


def test_what_nobody_may_read_the_user_may(tmp_path: Path, guarded, monkeypatch) -> None:
    local = write_trajectory(tmp_path / "run", STEPS)
    guarded.put(str(local), "/bucket/run", recursive=True)
    identities = {"guarded": ({"name": ""}, {"name": "user"})}
    monkeypatch.setattr(places, "_IDENTITIES", identities)
    assert_same(open_trajectory("guarded://bucket/run"), open_trajectory(local))

    monkeypatch.setattr(places, "_IDENTITIES", {"guarded": ({"name": ""}, {"name": "stranger"})})
    monkeypatch.setattr(places, "_LOGIN", {"guarded": "; log in"})
    with pytest.raises(TrajectoryError, match="cannot be listed: nobody may list this; log in"):
        open_trajectory("guarded://bucket/run")


def write_legacy(folder: Path, step: int) -> None:
    write_t5x(folder / f"checkpoint_{step}", t5_parameters(step, layers=1))


def write_single_file(folder: Path, step: int) -> None:
    write_t5x_file(folder / f"checkpoint_{step}", t5_parameters(step, layers=1))


def write_store(folder: Path, step: int) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = {"params": nested(t5_parameters(step, layers=1))}
        checkpointer.save(folder.absolute() / str(step), tree)


@pytest.mark.parametrize("write", [write_legacy, write_single_file, write_store])
def test_every_layout_is_read_through_fsspec(tmp_path: Path, write) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    fsspec.filesystem("memory").put(str(tmp_path), f"/layouts/{write.__name__}", recursive=True)
    url = f"memory://layouts/{write.__name__}"
    assert_same(open_trajectory(url), open_trajectory(tmp_path))
    # One checkpoint by its own URL.
    name = {"write_store": "2"}.get(write.__name__, "checkpoint_2")
    assert_same(open_trajectory(f"{url}/{name}"), open_trajectory(tmp_path / name))


def test_a_checkpoint_that_lost_a_file_is_named(tmp_path: Path) -> None:
    write_legacy(tmp_path, 1)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path), "/lost", recursive=True)
    files.rm("/lost/checkpoint_1/target.encoder.layers_0.mlp.wo.kernel/.zarray")
    with pytest.raises(Exception, match=r"memory://.*wo\.kernel/\.zarray is missing"):
        open_trajectory("memory://lost")[1]


def test_names_that_no_disk_could_have_are_left_out() -> None:
    file = File(1)
    odd = [("../x", file), ("a//c", file), ("a", None), ("d", None), ("", file)]
    assert nested_listing([("a/b", file), *odd]) == {"a": {"b": file}, "d": None}
    assert nested_listing([("a", file), ("a/b", file), ("a", file)]) == {"a": {"b": file}}


def test_a_bucket_s_name_that_cannot_be_is_one_sentence() -> None:
    class Odd:
        def ls(self, path: str, detail: bool) -> list:
            raise ValueError("Invalid bucket name\nwith details")

    bucket = Bucket("odd", "x")
    bucket._system = Odd()
    with pytest.raises(OSError, match="Invalid bucket name"):
        bucket.listing("", deep=False)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs", reason="reading s3:// needs s3fs (the extra 's3')")
    server = pytest.importorskip("moto.server", reason="no S3 to read from without moto[server]")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield "saturation-test"
    running.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3(tmp_path: Path, s3: str) -> None:
    local = write_trajectory(tmp_path / "run", STEPS)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.makedirs(s3, exist_ok=True)
    files.put(str(local), f"{s3}/run", recursive=True)
    assert_same(open_trajectory(f"s3://{s3}/run"), open_trajectory(local))


def negated(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: -array for name, array in arrays.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_object_of_s3_that_is_replaced_is_noticed(tmp_path: Path, s3: str) -> None:
    local = write_trajectory(tmp_path / "run", STEPS)
    other = write_trajectory(tmp_path / "other", STEPS, lambda _, arrays: negated(arrays))
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.makedirs(s3, exist_ok=True)  # moto keeps it from one server to the next
    files.put(str(local), f"{s3}/replaced", recursive=True)
    trajectory = open_trajectory(f"s3://{s3}/replaced")
    for checkpoint in trajectory:
        checkpoint.load()
    files.put(str(other / "step_10/model.safetensors"), f"{s3}/replaced/step_10/model.safetensors")
    trajectory[30].load()
    with pytest.raises(CheckpointFormatError, match="has changed since it was listed, its version"):
        trajectory[10].load()
