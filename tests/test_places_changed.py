"""A file on a network that is replaced between the listing and a reading is noticed, at no cost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_writers import nested, t5_parameters
from fsspec.asyn import get_loop, sync
from safetensors.numpy import save_file
from servers import hub, web

from saturation.checkpoints import open_checkpoint, open_folder
from saturation.errors import CheckpointFormatError
from saturation.storage import places
from saturation.storage.places import Bucket, File, refuse_changed
from saturation.storage.retry import Changed
from saturation.trajectory.trajectory import open_trajectory

pytest.importorskip("aiohttp", reason="reading the web needs aiohttp (the extra 'hub')")

CHANGED = "model.safetensors cannot be read: it has changed since it was listed, its {} was"


def write(folder: Path, value: float, rows: int = 100) -> Path:
    """Write a checkpoint large enough that its arrays do not come with its beginning."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file({"layer.weight": np.full((rows, 100), value, np.float32)}, path)
    return path


def replaced(folder: Path, how: str) -> None:
    rows = {"another": 100, "longer": 150, "shorter": 30}[how]
    path = write(folder, 7.0, rows)
    os.utime(path, (1e9, 1e9))


SAID = {"etags": "ETag", "dates": "Last-Modified", "nothing": "size"}


@pytest.mark.parametrize("how", ["another", "longer", "shorter"])
@pytest.mark.parametrize("says", SAID)
def test_a_web_server_s_file_that_was_replaced(tmp_path: Path, says: str, how: str) -> None:
    if (says, how) == ("nothing", "another"):
        pytest.skip("such a server says nothing by which another file of the same size is known")
    write(tmp_path, 1.0)
    with web(tmp_path) as served:
        if says != "nothing":
            setattr(served, says, True)
        checkpoint = open_checkpoint(f"{served.url}/model.safetensors")
        np.testing.assert_array_equal(checkpoint.read("layer/weight"), np.float32(1.0))
        replaced(tmp_path, how)
        before = len(served.requests)
        # A different size is seen first.
        what = SAID[says] if how == "another" else "size"
        with pytest.raises(CheckpointFormatError, match=CHANGED.format(what)) as raised:
            checkpoint.read("layer/weight")
        assert "\n" not in str(raised.value)
        assert len(served.requests) == before + 1  # the read's own, not tried again


@pytest.mark.parametrize("says", [{"etags": True}, {"dates": True}, {}])
def test_a_file_that_stays_costs_no_more_requests(tmp_path: Path, says: dict[str, bool]) -> None:
    write(tmp_path, 1.0)
    counts = []
    for marks in ({}, says):
        with web(tmp_path) as served:
            for name, value in marks.items():
                setattr(served, name, value)
            checkpoint = open_checkpoint(f"{served.url}/model.safetensors")
            for _ in range(3):
                np.testing.assert_array_equal(checkpoint.read("layer/weight"), np.float32(1.0))
            counts.append(len(served.requests))
    assert counts[0] == counts[1]


def test_a_server_that_no_longer_says_its_marks_is_read(tmp_path: Path) -> None:
    write(tmp_path, 1.0)
    with web(tmp_path) as served:
        served.etags = served.dates = True
        checkpoint = open_checkpoint(f"{served.url}/model.safetensors")
        served.etags = False  # the date alone says nothing where an ETag was said before
        checkpoint.read("layer/weight")


@pytest.mark.parametrize("how", ["another", "longer", "shorter"])
def test_a_hub_s_file_that_was_replaced(tmp_path: Path, monkeypatch, how: str) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    local = tmp_path / "local"
    for step in (0, 1):
        write(local / f"step_{step}", float(step))
    revisions = {f"step_{step}": local / f"step_{step}" for step in (0, 1)}
    with hub({"org/model": revisions}) as served:
        served.etags = True
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        trajectory = open_trajectory("hf://org/model@step_*")
        for step in (0, 1):
            found = trajectory[step].read("layer/weight")
            np.testing.assert_array_equal(found, np.float32(step))
        replaced(local / "step_1", how)
        trajectory[0].read("layer/weight")
        what = "hash" if how == "another" else "size"
        with pytest.raises(CheckpointFormatError, match=rf"step_1/{CHANGED.format(what)}"):
            trajectory[1].read("layer/weight")


def test_marks_are_compared_without_what_says_nothing_of_the_file() -> None:
    for was, now in ((None, "a"), ("a", None), ('"a"', 'W/"a"'), ("1", 1), ('W/"a"', "a")):
        refuse_changed("ETag", was, now)
    for was, now in (('"a"', '"b"'), (1, 2), ("a", "")):
        with pytest.raises(Changed, match=r"its ETag was .* and is "):
            refuse_changed("ETag", was, now)


def test_a_store_of_orbax_that_was_replaced(tmp_path: Path, monkeypatch) -> None:
    """TensorStore asks the bridge for the ranges, and hands on why there is no answer."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    folder = tmp_path / "main"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"params": nested(t5_parameters(0))})
    with hub({"org/model": {"step_0": folder}}) as served:
        served.etags = True
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        checkpoint = open_checkpoint(open_folder("hf://org/model@step_0"), 0)
        for file in folder.rglob("d/*"):
            with file.open("ab") as opened:
                opened.write(b"more")
        with pytest.raises(CheckpointFormatError, match="it has changed since it was listed"):
            checkpoint.load()


class Answers:
    """The one method of gcsfs or s3fs that a bucket listens to, and what reads through it."""

    mark: str | None = "1"
    requests = 0

    async def _request(self, method: str, path: str) -> tuple[int, dict[str, str], None, bytes]:
        self.requests += 1
        return 206, {"X-Goog-Generation": self.mark} if self.mark else {}, None, b"abcd"

    async def _call_s3(self, method: str, **options: str) -> dict[str, str]:
        self.requests += 1
        return {"Body": "abcd"} | ({"ETag": self.mark} if self.mark else {})

    async def _cat(self, start: int, end: int) -> bytes:
        if type(self).__module__.startswith("gcsfs"):
            return (await self._request("GET", "b/o"))[3][start:end]
        body = (await self._call_s3("get_object", Bucket="b", Key="o"))["Body"]
        return body[start:end].encode()

    def cat_file(self, path: str, *, start: int, end: int) -> bytes:
        return sync(get_loop(), self._cat, start, end)


@pytest.fixture(params=["gcsfs", "s3fs"])
def answers(request) -> tuple[Bucket, Answers]:
    # Whose class lies in a module of the package.
    system: Answers = type("System", (Answers,), {"__module__": f"{request.param}.core"})()
    bucket = Bucket("odd", "b")
    places._note_marks(system)
    bucket._system = system
    return bucket, system


def test_a_bucket_s_object_that_was_replaced(answers: tuple[Bucket, Answers]) -> None:
    bucket, system = answers
    file = File(4, mark="1")
    assert bucket.fetch("o", file, 1, 3) == b"bc"
    system.mark = "2"
    with pytest.raises(Changed, match="its version was 1 and is 2"):
        bucket.fetch("o", file, 1, 3)
    assert system.requests == 2
    system.mark = None
    assert bucket.fetch("o", file, 0, 4) == b"abcd"
    assert bucket.fetch("o", File(4), 0, 4) == b"abcd"
