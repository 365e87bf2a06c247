"""Where a run may lie: what a place on a network refuses or lacks is one sentence."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from saturation.errors import ResultsError
from saturation.runfolder import RunFolder


class HttpError(Exception):
    """Stands for the errors of gcsfs, s3fs and aiohttp, few of them of Python's own classes."""


HttpError.__module__ = "gcsfs.retry"


class Broken(MemoryFileSystem):
    """A place that refuses everything."""

    protocol = "broken"

    def cat_file(self, path, start=None, end=None, **more):
        raise HttpError("Invalid Credentials, 401\nand more")

    def pipe_file(self, path, value, mode="overwrite", **more):
        raise HttpError("quota exceeded")

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **more):
        raise ValueError("no such kind of bucket")


def test_what_a_place_refuses_is_one_sentence_whatever_class_its_error_has():
    fsspec.register_implementation("broken", Broken, clobber=True)
    folder = RunFolder("broken://bucket/run")
    with pytest.raises(ResultsError) as read:
        folder.read("run.json")
    assert str(read.value) == "Cannot read broken://bucket/run/run.json: Invalid Credentials, 401."
    with pytest.raises(ResultsError, match=r"Cannot write .*/run.json: quota exceeded. What was"):
        folder.write("run.json", b"{}")
    with pytest.raises(ResultsError, match="Cannot list broken://bucket/run: no such kind of"):
        folder.parts()


def test_a_mistake_of_ours_is_not_taken_for_one_of_the_place(monkeypatch: pytest.MonkeyPatch):
    fsspec.register_implementation("broken", Broken, clobber=True)
    monkeypatch.setattr(Broken, "cat_file", lambda *_: {}["a bug"])
    with pytest.raises(KeyError):
        RunFolder("broken://bucket/run").read("run.json")


def test_a_url_of_a_local_disk_is_a_local_folder(tmp_path: Path):
    RunFolder(f"file://{tmp_path}/run").write("parts/norms/a.0-1.parquet", b"x")
    assert (tmp_path / "run" / "parts" / "norms" / "a.0-1.parquet").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", "its path is empty"),
        ("gopher://a/b", r"gopher://a/b cannot be reached: .*not known.*or give a local folder"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path: str, text: str):
    with pytest.raises(ResultsError, match=text):
        RunFolder(path)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    def without(*_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(ResultsError, match=r"s3fs .*pip install 'saturation-jax\[gcs\]' for gs"):
        RunFolder("s3://bucket/run")
