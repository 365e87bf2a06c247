"""The public trajectories that the package knows: every file says what it must, and parses."""

from __future__ import annotations

from pathlib import Path

import pytest

from saturation.storage import hub
from saturation.trajectory.manifest import known_trajectories, parse, read_manifest

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "trajectories"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_catalogued_trajectory(path):
    text = path.read_text()
    assert text.startswith("# ")
    assert f"# Command: saturation ls {path.stem}\n" in text
    manifest = parse(path.name, text.encode())
    for said in (manifest.title, manifest.source, manifest.size, manifest.licence):
        assert said
    # None was opened from here, and each says so.
    assert manifest.opened.startswith("never")
    places = read_manifest(path.stem)
    for url in places.urls.values() if places.url is None else [places.url]:
        assert url.startswith(("hf://", "gs://"))
        if url.startswith("hf://"):
            hub.parse_url(url)


def test_they_are_known_by_name():
    assert sorted(known_trajectories()) == sorted(path.stem for path in FILES)
    assert {"pile-t5-base", "pile-t5-xxl-t5x", "t5-11b", "t5-1.1-xl", "pythia-160m"} <= set(
        known_trajectories()
    )


def test_what_is_expected_of_the_best_known():
    assert len(read_manifest("pile-t5-base").expected) == 200
    assert read_manifest("pile-t5-base").expected[-1] == 2_000_000
    assert len(read_manifest("pythia-160m").expected) == 154
    assert read_manifest("t5-1.1-base").expected == (1_000_000, 1_100_000)
