"""Files of a plain web server: only the bytes asked for, tried again, refused in clear words."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_trajectory import t5_arrays, write_trajectory
from safetensors.numpy import save_file
from servers import Served, web, write_large

from saturation.checkpoints import open_checkpoint, open_folder
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.storage import retry
from saturation.storage.retry import Denied, HTTPStatusError, redacted, retrying
from saturation.trajectory.trajectory import open_trajectory

pytest.importorskip("aiohttp", reason="reading the web needs aiohttp (the extra 'hub')")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with web(tmp_path) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)


def test_of_a_large_file_only_the_bytes_asked_for_travel(served: Served, tmp_path: Path) -> None:
    assert write_large(tmp_path / "step_5") > 10**8
    checkpoint = open_trajectory(f"{served.url}/step_5/model.safetensors")[5]
    assert served.sent() < 10_000

    checkpoint.read("layer/7/weight")
    checkpoint.read("layer/3/weight", (slice(100, 600),))
    wanted = 10**7 + 2 * 10**6
    assert wanted <= served.sent() <= 1.01 * wanted
    assert all(asked for _, _, asked, _ in served.requests)  # never without a Range


def test_a_server_that_fails_every_third_request_changes_nothing(
    served: Served, tmp_path: Path, quick: None
) -> None:
    local = write_trajectory(tmp_path / "run", (0, 10))
    served.fail_every = 3
    for step in (0, 10):
        url = f"{served.url}/run/step_{step}/model.safetensors"
        checkpoint, expected = open_checkpoint(url, step), open_trajectory(local)[step]
        for name in expected.parameters:
            np.testing.assert_array_equal(checkpoint.read(name), expected.read(name))
    assert sum(count for *_, count in served.requests) > 0


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"status": 500}, "the server answers 500 Internal Server Error \\(7 attempts were made"),
        ({"status": 404}, "model.safetensors: no such folder or file"),
        ({"status": 403}, "cannot be listed: the server answers 403 Forbidden\\.$"),
        ({"ranges": False}, "the server ignores byte ranges and sends whole files only"),
        ({"cut": True}, "bytes came where .* were asked for \\(7 attempts were made"),
    ],
)
def test_what_stays_wrong_is_one_sentence(
    served: Served, tmp_path: Path, quick: None, how: dict[str, object], text: str
) -> None:
    write_trajectory(tmp_path, (0,))
    for name, value in how.items():
        setattr(served, name, value)
    with pytest.raises(TrajectoryError, match=text) as raised:
        open_trajectory(f"{served.url}/step_0/model.safetensors")
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_said(quick: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrajectoryError, match=r"Cannot connect to host .* \(7 attempts were made"):
        open_trajectory(f"http://127.0.0.1:{port}/model.safetensors")


def test_a_port_is_no_step(served: Served, tmp_path: Path) -> None:
    save_file(t5_arrays(0), tmp_path / "model.safetensors")
    assert open_trajectory(f"{served.url}/model.safetensors").steps == (0,)


def test_a_folder_of_a_web_server_is_refused(served: Served) -> None:
    with pytest.raises(TrajectoryError, match="lists no folders; give the URL of one checkpoint"):
        open_trajectory(f"{served.url}/")


def test_names_are_quoted_and_queries_are_kept_but_not_shown(
    served: Served, tmp_path: Path
) -> None:
    save_file({"a.weight": np.ones((2, 2), np.float32)}, tmp_path / "a b#1.safetensors")
    address = served.url.replace("://", "://user:password@")
    url = f"{address}/a%20b%231.safetensors?signature=secret"
    checkpoint = open_checkpoint(url)
    assert checkpoint.read("a/weight").sum() == 4
    assert checkpoint.path == served.url
    assert all(path.endswith("?signature=secret") for _, path, _, _ in served.requests)
    with pytest.raises(CheckpointFormatError) as raised:
        open_checkpoint(url.replace("b", "c"))
    assert "secret" not in str(raised.value)
    assert "password" not in str(raised.value)


def test_a_cache_keeps_ranges_and_never_more_than_its_limit(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(t5_arrays(0), tmp_path / "model.safetensors")
    cache = tmp_path / "cache"
    monkeypatch.setenv("SATURATION_CACHE", str(cache))
    monkeypatch.setenv("SATURATION_CACHE_BYTES", "20000")

    def read_all() -> list[np.ndarray]:
        checkpoint = open_checkpoint(f"{served.url}/model.safetensors")
        return [checkpoint.read(name) for name in checkpoint.parameters]

    first, sent = read_all(), served.sent()
    held = sum(path.stat().st_size for path in cache.iterdir())
    assert 0 < held <= 20000 < sent
    monkeypatch.setenv("SATURATION_CACHE_BYTES", "10000000")
    read_all()
    sent = served.sent()
    for one, other in zip(first, read_all(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert served.sent() - sent < 10  # the file's size is asked for again, and nothing else


def test_pauses_grow_and_a_server_s_own_wish_is_heeded() -> None:
    pauses: list[float] = []
    errors = iter(
        [
            HTTPStatusError(503),
            HTTPStatusError(429, retry_after=9.0),
            OSError("reset"),
            HTTPStatusError(500),
        ]
    )

    def action() -> str:
        for error in errors:
            raise error
        return "read"

    assert retrying(action, pause=pauses.append) == "read"
    assert len(pauses) == 4
    assert 0.125 <= pauses[0] <= 0.25
    assert pauses[1] == 9.0
    assert 0.5 <= pauses[2] <= 1.0 <= pauses[3] <= 2.0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("gone"), FileNotFoundError),
        (PermissionError("no"), Denied),
        (HTTPStatusError(401), Denied),
        (OSError("Forbidden: https://storage/…"), Denied),
        (HTTPStatusError(416, "Range Not Satisfiable"), HTTPStatusError),
        (KeyError("a bug of ours"), KeyError),
    ],
)
def test_what_cannot_pass_is_not_tried_again(error: Exception, kind: type[Exception]) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(kind):
        retrying(action, pause=lambda seconds: pytest.fail("waited"))
    assert len(calls) == 1


def test_a_status_is_said_once() -> None:
    class Refusal(OSError):
        status = 429

    with pytest.raises(OSError, match=r"answers 429 Too Many for url: x \(2 attempts were made"):
        retrying(raising(Refusal("429 Too Many for url: x.")), 2, lambda _: None)


def raising(error: Exception):
    def action():
        raise error

    return action


def test_secrets_are_taken_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    text = "GET https://me:pw@host/x?X-Sig=1&b=2 with Authorization: Bearer xyz and hf_abc"
    assert redacted(text) == "GET https://***@host/x?*** with Authorization: Bearer *** and ***"


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for url, extra in (("gs://b/x", "gcs"), ("s3://b/x", "s3"), ("hf://o/r", "hub")):
        with pytest.raises(
            CheckpointFormatError, match=rf"pip install 'saturation-jax\[{extra}\]'"
        ):
            open_folder(url)
    with pytest.raises(CheckpointFormatError, match="there is no way to read nonsense://"):
        open_folder("nonsense://b/x")
