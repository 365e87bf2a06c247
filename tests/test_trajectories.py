"""The public trajectories that the package knows: every file says what it must, and parses."""

from __future__ import annotations

from pathlib import Path

import pytest

from saturation.errors import ConfigError
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
    assert read_manifest("pythia-14m-seed9").expected == read_manifest("pythia-12b").expected
    assert read_manifest("pythia-70m-deduped").expected[:12] == (
        *(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000),
    )
    berts = read_manifest("multiberts-seed_4")
    assert len(berts.expected) == 28
    assert berts.urls[20_000] == "hf://google/multiberts-seed_4-step_20k"
    crfm = read_manifest("crfm-alias-gpt2-small-x21")
    assert len(crfm.expected) == 608
    assert crfm.url == "hf://stanford-crfm/alias-gpt2-small-x21@checkpoint-*"
    assert read_manifest("olmo-2-7b").url == "hf://allenai/OLMo-2-1124-7B@stage1-step*"


@pytest.mark.parametrize("steps", ["1:2", "1:9:0", "1, x", "0:10:1, ", "0:9000000000:1"])
def test_steps_that_say_none_are_refused(steps):
    with pytest.raises(ConfigError, match="steps"):
        parse("a.yaml", f"url: hf://a/b@s*\nsteps: '{steps}'".encode())
