"""Where a run may lie: what a place on a network refuses or lacks is one sentence."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from saturation.checkpoints import open_folder
from saturation.errors import ResultsError, SaturationError
from saturation.results.folder import RunFolder
from saturation.storage import places, retry


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


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts of no length to speak of."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1e-4)


def test_what_a_place_refuses_is_one_sentence_whatever_class_its_error_has(hurried):
    fsspec.register_implementation("broken", Broken, clobber=True)
    folder = RunFolder("broken://bucket/run")
    with pytest.raises(ResultsError) as read:
        folder.read("run.json")
    seven = r"(7 attempts were made; try again later)"
    expected = "Cannot read broken://bucket/run/run.json: Invalid Credentials, 401"
    assert str(read.value) == f"{expected} {seven}."
    with pytest.raises(ResultsError, match=r"Cannot write .*/run.json: quota exceeded \(7 .* What"):
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
    def without(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(ResultsError, match=r"s3fs .*pip install 'saturation-jax\[gcs\]' for gs"):
        RunFolder("s3://bucket/run")


ASKED: dict[str, Callable[[], object]] = {
    "read": lambda: RunFolder("gs://bucket/run").read("run.json"),
    "write": lambda: RunFolder("gs://bucket/run").write("run.json", b"{}"),
    "list": lambda: RunFolder("gs://bucket/run").parts(),
    "a checkpoint": lambda: open_folder("gs://bucket/t").files,
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_bucket_that_refuses_is_asked_by_us_alone(hurried, monkeypatch, asked):
    pytest.importorskip("gcsfs", reason="reading buckets needs gcsfs (the extra 'gcs')")
    with socket.socket() as closed:  # bound, so that nobody else listens there, and not listening
        closed.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        started = time.monotonic()
        with pytest.raises(SaturationError, match=r"Connect call failed.*\(7 attempts were made"):
            ASKED[asked]()
    assert time.monotonic() - started < 8, "six pauses of gcsfs's own are half a minute"


@pytest.mark.parametrize("asked", ASKED)
def test_a_bucket_that_never_answers_is_given_up_after_our_patience(monkeypatch, asked):
    pytest.importorskip("gcsfs", reason="reading buckets needs gcsfs (the extra 'gcs')")
    assert places.PATIENCE == retry.PATIENCE == 16, "as docs/places.md says"
    for module in (places, retry):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(SaturationError, match=r"(?i)timeout"):
            ASKED[asked]()
    assert time.monotonic() - started < 8, "aiohttp's own patience is five minutes"


def test_what_finds_the_users_credentials_does_not_ask_for_long(monkeypatch):
    """gcsfs asks Google's machine where Google's library has found that this is none."""
    gcsfs = pytest.importorskip("gcsfs", reason="reading buckets needs gcsfs (the extra 'gcs')")
    tried = []

    def connect(self, method=None):
        tried.append(method)
        if method != "anon":
            raise ValueError("no such credentials")

    monkeypatch.setattr(gcsfs.credentials.GoogleCredentials, "connect", connect)
    RunFolder("gs://bucket/run")
    assert tried == ["google_default", "cache", "anon"]
