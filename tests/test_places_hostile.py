"""Servers that answer wrongly, for ever, too much or on behalf of others: one sentence each."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from saturation.checkpoints import open_folder
from saturation.errors import CheckpointFormatError, SaturationError, escaped
from saturation.storage import hub_guard, trust, web
from saturation.storage.cache import DiskCache
from saturation.trajectory.trajectory import open_trajectory

pytest.importorskip("aiohttp", reason="reading the web needs aiohttp (the extra 'hub')")

MAIN = "from saturation.cli.commands import main; main()"
FILE = save({"a.weight": np.ones((64, 64), np.float32)})
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server whose every GET is answered by `answer`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:
                self.close_connection = True  # the client had enough

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": len(content), **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(content)


def asked_range(handler: BaseHTTPRequestHandler) -> tuple[int, int]:
    start, stop = handler.headers["Range"].removeprefix("bytes=").split("-")
    return int(start), min(int(stop) + 1, len(FILE))


def send_range(handler: BaseHTTPRequestHandler, **headers) -> None:
    start, stop = asked_range(handler)
    said = {"Content_Range": f"bytes {start}-{stop - 1}/{len(FILE)}"}
    send(handler, FILE[start:stop], 206, **said, **headers)


def ls(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", MAIN, "ls", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (env or {}),
    )


# --- the hub ------------------------------------------------------------------------------------

FORMS = {
    "a login page": b"<html>log in</html>",
    "an object for a list": b'{"error": 1}',
    "a list of numbers": b"[1]",
    "an entry without a path": b'[{"type": "file"}]',
    "a null": b"null",
    "a null for a size": b'[{"type": "file", "path": "m", "size": null, "oid": "1"}]',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_hub_that_answers_what_none_does_is_one_sentence(form: str, monkeypatch) -> None:
    with serving(lambda handler: send(handler, FORMS[form])) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        for place in ("hf://org/repo", "hf://org/repo@step_*"):
            with pytest.raises(SaturationError, match="answers what no hub does"):
                open_trajectory(place)


def test_a_listing_that_names_its_own_page_ends(monkeypatch) -> None:
    def loop(handler: BaseHTTPRequestHandler) -> None:
        host = handler.headers["Host"]
        send(handler, b"[]", Link=f'<http://{host}{handler.path}>; rel="next"')

    with serving(loop) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(SaturationError, match="names a page of its listing twice"):
            open_trajectory("hf://org/repo")


def test_a_listing_without_end_ends(monkeypatch) -> None:
    counts = iter(range(10**6))

    def more(handler: BaseHTTPRequestHandler) -> None:
        host, page = handler.headers["Host"], next(counts)
        path = handler.path.partition("?")[0]
        send(handler, b"[]", Link=f'<http://{host}{path}?page={page}>; rel="next"')

    monkeypatch.setattr(hub_guard, "MOST_REQUESTS", 5)
    with serving(more) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(SaturationError, match="more than 5 pages"):
            open_trajectory("hf://org/repo")
    assert next(counts) == 5


def test_a_listing_is_bounded_in_bytes_and_in_time(monkeypatch) -> None:
    entries = json.dumps([{"type": "directory", "path": "x" * 1000, "oid": "1"}] * 100).encode()
    with serving(lambda handler: send(handler, entries)) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(hub_guard, "LARGEST_LISTING", 50_000)
        with pytest.raises(SaturationError, match="listing is larger than"):
            open_trajectory("hf://org/repo")

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    monkeypatch.setattr(hub_guard, "SECONDS", 0.5)
    with serving(drip) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        started = time.monotonic()
        with pytest.raises(SaturationError, match="was not there after"):
            open_trajectory("hf://org/repo")
        assert time.monotonic() - started < 10


def test_offline_is_heeded_and_nothing_is_asked(monkeypatch) -> None:
    asked = []
    with serving(lambda handler: asked.append(handler.path) or send(handler, b"[]")) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(SaturationError, match="HF_HUB_OFFLINE is set"):
            open_trajectory("hf://org/repo@step_*")
    assert not asked


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("sécret", "has a character that no token"),
        ("hf_se cret", "has a character that no token"),
        ('"hf_secret"', "stands in quotes"),
        ("'hf_secret'", "stands in quotes"),
    ],
)
def test_what_can_be_no_token_is_not_sent_nor_said(monkeypatch, token: str, why: str) -> None:
    asked = []
    with serving(lambda handler: asked.append(handler.path) or send(handler, b"[]")) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(SaturationError, match=f"HF_TOKEN {why}") as raised:
            open_trajectory("hf://org/repo@step_*")
    assert token not in str(raised.value)
    assert not asked


@pytest.mark.parametrize(
    ("page", "instead"),
    [
        ("https://huggingface.co/org/repo", "hf://org/repo"),
        ("https://huggingface.co/org/repo/tree/step100", "hf://org/repo@step100"),
        ("https://huggingface.co/org/repo/tree/main/a/b", "hf://org/repo@main/a/b"),
        ("https://huggingface.co/org/repo/blob/v1/a.bin", "hf://org/repo@v1/a.bin"),
        ("https://huggingface.co/datasets/org/x/tree/v1", "hf://datasets/org/x@v1"),
    ],
)
def test_a_page_of_the_hub_is_answered_by_what_to_give(page: str, instead: str) -> None:
    with pytest.raises(SaturationError, match="is a page of the hub") as raised:
        open_trajectory(page)
    assert str(raised.value).endswith(f"give {instead}.")
    for url in (
        "https://huggingface.co/org/repo/resolve/main/a.bin",
        "https://huggingface.co/api/models/org",
        "https://other.org/org/repo/tree/step100",
    ):
        open_folder(url)


def test_a_token_of_two_lines_is_one_sentence_without_it(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_xxxx\nSECRET")
    with pytest.raises(SaturationError, match="HF_TOKEN has more than one line") as raised:
        open_trajectory("hf://org/repo@step_*")
    assert "SECRET" not in str(raised.value)


# --- the web ------------------------------------------------------------------------------------


def test_a_body_is_read_to_its_announced_length_and_no_further() -> None:
    """A range that is followed by bytes without end, in chunks that say nothing of length."""
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        start, stop = asked_range(handler)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(FILE)}")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in (FILE[start:stop], *[bytes(2**16)] * 4000):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent.append(len(piece))

    with serving(endless) as url:
        checkpoint = next(iter(open_trajectory(f"{url}/model_5.safetensors")))
        assert checkpoint.read("a/weight").sum() == 64 * 64
    assert sum(sent) < 100 * 2**20


def test_compressed_ranges_are_refused_before_they_are_unpacked() -> None:
    bomb = gzip.compress(bytes(64 * 2**20))

    def compressed(handler: BaseHTTPRequestHandler) -> None:
        start, stop = asked_range(handler)
        send(
            handler, bomb, 206, Content_Encoding="gzip",
            Content_Range=f"bytes {start}-{stop - 1}/{len(FILE)}",
        )  # fmt: skip

    with serving(compressed) as url, pytest.raises(SaturationError, match="the server compresses"):
        open_trajectory(f"{url}/model_5.safetensors")


def test_a_byte_a_second_is_an_end(monkeypatch) -> None:
    monkeypatch.setattr(web, "_LEAST_SECONDS", 0.3)
    monkeypatch.setattr("saturation.storage.retry.PATIENCE", 0.5)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        start, stop = asked_range(handler)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(FILE)}")
        handler.send_header("Content-Length", str(stop - start))
        handler.end_headers()
        for at in range(start, stop):
            handler.wfile.write(FILE[at : at + 1])
            time.sleep(0.1)

    def drip_but_one(handler: BaseHTTPRequestHandler) -> None:
        if asked_range(handler)[1] == 1:
            send_range(handler)
        else:
            drip(handler)

    with serving(drip_but_one) as url:
        started = time.monotonic()
        with pytest.raises(SaturationError, match="had not answered in full after"):
            open_trajectory(f"{url}/model_5.safetensors")
        assert time.monotonic() - started < 20


def test_a_redirect_may_lead_on_and_takes_no_secret_to_another_server() -> None:
    heard = []

    def there(handler: BaseHTTPRequestHandler) -> None:
        heard.append(handler.headers.get("Authorization"))
        send_range(handler)

    with serving(there) as other:

        def here(handler: BaseHTTPRequestHandler) -> None:
            send(handler, b"", 302, Location=f"{other}{handler.path}")

        with serving(here) as url:
            client = web.Client()
            data, *_ = client.range(f"{url}/f", 0, 8, {"Authorization": "Bearer secret"})
    assert data == FILE[:8]
    assert heard == [None]


def test_redirects_end() -> None:
    with (
        serving(lambda handler: send(handler, b"", 302, Location=handler.path)) as url,
        pytest.raises(SaturationError, match="redirects more than 10 times"),
    ):
        open_trajectory(f"{url}/model_5.safetensors")


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/a_1.safetensors", "http://:80/a_1"])
def test_an_address_of_no_server_is_one_sentence(url: str) -> None:
    with pytest.raises(SaturationError, match="no address of a server"):
        open_trajectory(url)


# --- trust --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["http://localhost/x", "https://127.1/x", "https://2130706433/", "https://[::1]/", "https://0/",
     "https://169.254.169.254/latest", "https://[::ffff:127.0.0.1]/", "file:///etc/passwd",
     "local://etc/passwd", "memory://x", "simplecache::https://x/y", "ftp://x/y", "http://x/y"],
)  # fmt: skip
def test_what_comes_from_elsewhere_leads_to_public_places_alone(target: str) -> None:
    with pytest.raises(CheckpointFormatError, match="leads to"):
        trust.refuse_lead("https://192.0.2.1/manifest.yaml", target)


@pytest.mark.parametrize(
    "target", ["https://192.0.2.7/x", "gs://bucket/x", "hf://org/x", "s3://b/x"]
)
def test_public_places_are_let_through(target: str) -> None:
    trust.refuse_lead("https://192.0.2.1/manifest.yaml", target)
    trust.refuse_lead("http://127.0.0.1:80/m.yaml", "http://localhost:8000/x")


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_manifest_from_the_web_names_no_file_of_this_machine(scheme: str, tmp_path: Path) -> None:
    content = f"checkpoints: [{{step: 1, url: '{scheme}://{tmp_path}/m.safetensors'}}]".encode()

    def manifest(handler: BaseHTTPRequestHandler) -> None:
        start, stop = handler.headers["Range"].removeprefix("bytes=").split("-")
        piece = content[int(start) : int(stop) + 1]
        said = f"bytes {start}-{int(start) + len(piece) - 1}/{len(content)}"
        send(handler, piece, 206, Content_Range=said)

    with serving(manifest) as url, pytest.raises(SaturationError, match="leads to"):
        open_trajectory(f"{url}/m.yaml")


def test_no_password_and_no_query_is_shown_or_kept() -> None:
    assert trust.shown_url("https://u:p@host/a/b?sig=1") == "https://host/a/b"
    assert trust.shown_url("gs://bucket/a") == "gs://bucket/a"
    assert trust.shown_url("/data/u:p@x?y=1") == "/data/u:p@x?y=1"
    with serving(send_range) as url:
        secret = url.replace("http://", "http://user:hunter2@")
        trajectory = open_trajectory(f"{secret}/model_5.safetensors?key=hunter3")
        said = repr(trajectory) + trajectory.path + next(iter(trajectory)).path
    assert "hunter" not in said
    for place in (f"{secret}/gone.yaml", "foo://user:hunter2@h/x"):
        shown = ls(place)
        assert shown.returncode == 1
        assert "hunter" not in shown.stdout + shown.stderr


# --- what is kept, and what is shown ------------------------------------------------------------


def test_a_damaged_range_and_another_ranges_are_fetched_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10**6)
    cache.put("one", b"1" * 100)
    cache.put("two", b"2" * 100)
    assert cache.get("one", 100) == b"1" * 100
    one, two = cache._path("one"), cache._path("two")
    one.write_bytes(two.read_bytes())
    assert cache.get("one", 100) is None
    damaged = bytearray(two.read_bytes())
    damaged[50] ^= 1
    two.write_bytes(damaged)
    assert cache.get("two", 100) is None
    assert not two.exists()


def test_files_that_differ_by_their_query_are_cached_apart(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SATURATION_CACHE", str(tmp_path))
    files = {v: save({"a.weight": np.full((64, 64), v, np.float32)}) for v in (1, 2)}

    def versions(handler: BaseHTTPRequestHandler) -> None:
        start, stop = asked_range(handler)
        content = files[int(handler.path[-1])]
        said = f"bytes {start}-{stop - 1}/{len(content)}"
        send(handler, content[start:stop], 206, Content_Range=said)

    with serving(versions) as url:
        for version in (1, 2, 1):
            checkpoint = next(iter(open_trajectory(f"{url}/f_1.safetensors?v={version}")))
            assert checkpoint.read("a/weight").mean() == version


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert escaped("a\x1b[31mb\x07\n\udc80é") == "a\\x1b[31mb\\x07\n\\udc80é"
    with serving(lambda handler: handler.wfile.write(b"HTTP/1.1 500 \x1b[31mred\r\n\r\n")) as url:
        monkey = ls(f"{url}/a_1.safetensors")
    assert "\x1b" not in monkey.stderr + monkey.stdout
    assert "Traceback" not in monkey.stderr
