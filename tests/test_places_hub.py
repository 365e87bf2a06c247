"""The hub's revisions as a trajectory: a server of the test's own speaks the hub's interface."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_writers import nested, t5_parameters
from made_trajectory import write_trajectory
from servers import Served, hub, write_large

import saturation
from saturation.checkpoints import open_folder
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.runs.blocks import blocks_ahead
from saturation.runs.measure import measure
from saturation.storage.hub import parse_url
from saturation.trajectory.trajectory import open_trajectory

pytest.importorskip("aiohttp", reason="reading the hub needs aiohttp (the extra 'hub')")

STEPS = (0, 10, 30)
MAIN = "from saturation.cli.commands import main; main()"
TOKEN = "hf_thisIsTheSecretOfTheTest"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return write_trajectory(tmp_path / "local", STEPS)


@pytest.fixture
def served(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    for step in STEPS:
        (local / f"step_{step}" / "README.md").write_text("words " * 500)
        (local / f"step_{step}" / "tokenizer.json").write_text("{}" + " " * 50_000)
    (tmp_path / "main").mkdir()
    revisions = {f"step_{step}": local / f"step_{step}" for step in STEPS}
    revisions |= {"main": tmp_path / "main", "v1": local, "other_10": local / "step_10"}
    with hub({"org/model": revisions}) as server:
        # Set long after every import, as a user's notebook may.
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def assert_same(found, expected) -> None:
    assert found.steps == expected.steps
    for one, other in zip(found, expected, strict=True):
        assert one.parameters == other.parameters
        for name in other.parameters:
            np.testing.assert_array_equal(one.read(name), other.read(name))


def test_a_pattern_of_revisions_is_a_trajectory(served: Served, local: Path) -> None:
    trajectory = open_trajectory("hf://org/model@step_*")
    assert trajectory.remote
    assert trajectory.path == "hf://org/model@step_*"
    assert_same(trajectory, open_trajectory(local))


def test_steps_select_revisions_and_nothing_is_asked_of_the_others(served: Served) -> None:
    trajectory = open_trajectory("hf://org/model@step_*", "10:29:10")
    trajectory.open_all()
    assert trajectory.steps == (10,)
    assert not any("step_30" in path or "step_0" in path for _, path, _, _ in served.requests)


def test_a_revision_is_a_checkpoint_and_a_tag_may_hold_many(served: Served, local: Path) -> None:
    one = open_trajectory("hf://org/model@step_30")
    assert_same(one.select([0]) if one.steps == (0,) else one, open_trajectory(local, [30]))
    assert_same(open_trajectory("hf://models/org/model@v1"), open_trajectory(local))
    assert_same(open_trajectory("hf://org/model@v1/step_10"), open_trajectory(local, [10]))
    file = open_trajectory("hf://org/model@v1/step_10/model.safetensors")
    assert file.format == "huggingface"


def test_the_table_is_that_of_the_local_folder(served: Served, local: Path, tmp_path: Path) -> None:
    tables = []
    for number, path in enumerate((local, "hf://org/model@step_*")):
        out = str(tmp_path / f"run_{number}")
        measure(open_trajectory(path), ["norms", "direction"], out)
        tables.append(saturation.load_results(out))
    assert len(tables[0]) > 100
    assert tables[0].equals(tables[1])


def test_of_a_large_file_only_the_bytes_asked_for_travel(monkeypatch, tmp_path: Path) -> None:
    assert write_large(tmp_path / "step_5") > 10**8
    with hub({"org/large": {"step_5": tmp_path / "step_5"}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        checkpoint = open_trajectory("hf://org/large@step_*")[5]
        assert checkpoint.read("layer/7/weight", (slice(0, 1000),)).sum() == 7 * 10**6
        checkpoint.read("layer/3/weight")
        wanted = 4 * 10**6 + 10**7
        assert wanted <= server.sent() <= 1.01 * wanted


def test_revisions_open_and_arrays_are_read_many_at_once(served: Served, tmp_path: Path) -> None:
    trajectory = open_trajectory("hf://org/model@step_*")
    served.delay, served.at_once = 0.3, 0
    trajectory.open_all()
    assert served.at_once == len(STEPS)
    assert blocks_ahead(trajectory) > 1
    served.delay, served.at_once = 0.03, 0
    measure(trajectory, ["norms"], str(tmp_path / "run"))
    assert served.at_once > 2


def test_orbax_s_store_is_read_where_it_lies(served: Served, monkeypatch, tmp_path: Path) -> None:
    tree = {"params": nested(t5_parameters(3, layers=1))}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "store" / "5", tree)
    with hub({"org/store": {"main": tmp_path / "store"}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        server.token = TOKEN
        found = open_trajectory("hf://org/store")
        assert found[5].format == "orbax"
        assert_same(found, open_trajectory(tmp_path / "store"))
        opened = len(server.requests)
        found[5].read("encoder/encoder_norm/scale")
        assert len(server.requests) - opened <= 2  # an answer that leads on, and the bytes

        server.token = "another"
        with pytest.raises(TrajectoryError) as raised:
            open_trajectory("hf://org/store")
        assert TOKEN not in str(raised.value)


def test_long_trees_come_in_pages(served: Served, local: Path) -> None:
    served.page = 2
    assert_same(open_trajectory("hf://org/model@v1"), open_trajectory(local))


def test_opening_a_revision_takes_three_requests_and_none_for_its_texts(served: Served) -> None:
    trajectory = open_trajectory("hf://org/model@step_*", [10])
    trajectory.open_all()
    asked = [path for _, path, _, _ in served.requests if not path.startswith("/cdn")]
    assert len(asked) == 4  # references; tree, beginning with header, config.json
    assert not any("README" in path or "tokenizer" in path for path in asked)


def test_the_place_s_own_hash_of_a_file_is_known_from_the_listing(served: Served) -> None:
    folders = [open_folder(f"hf://org/model@{name}") for name in ("step_10", "other_10", "step_30")]
    first, same, other = (folder.digest("model.safetensors") for folder in folders)
    assert first == same != other


def test_the_token_is_sent_to_the_hub_and_never_printed(
    served: Served, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.token = TOKEN
    with pytest.raises(TrajectoryError, match=r"401.*set HF_TOKEN to a token that may read it"):
        open_trajectory("hf://org/model@step_*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert_same(open_trajectory("hf://org/model@step_*"), open_trajectory(local))
    assert served.authorized["/org/model/resolve/step_10/model.safetensors"] == f"Bearer {TOKEN}"

    served.status = 403
    for arguments in ((), ("--debug",)):
        run = subprocess.run(
            [sys.executable, "-c", MAIN, "ls", "hf://org/model@step_*", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 1
        assert "403" in run.stderr
        assert TOKEN not in run.stdout + run.stderr


def test_no_object_shows_the_token(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    trajectory = open_trajectory("hf://org/model@step_*")
    folder = open_folder("hf://org/model@step_10")
    shown = [trajectory, trajectory[10], folder, folder._store, folder._store.place]
    for thing in shown:
        assert TOKEN not in repr(thing) + str(getattr(thing, "__dict__", ""))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("hf://org/model@missing_*", "no branch or tag matches 'missing_\\*'; there are step_0, "),
        ("hf://org/absent@step_*", "hf://org/absent@step_\\* cannot be listed: no such repository"),
        ("hf://org/model@gone", "hf://org/model@gone: no such folder or file"),
        ("hf://org/model@step_10/nothing", "step_10/nothing: no such folder or file"),
        ("hf://org", "does not name a repository: hf://ORG/REPO@REVISION was expected"),
        ("hf://org/model@*", "revisions of several names: other_\\*, step_\\*, v\\*"),
    ],
)
def test_what_is_not_there_is_said(served: Served, url: str, text: str) -> None:
    with pytest.raises(TrajectoryError, match=text):
        open_trajectory(url)


def test_a_revision_may_have_a_slash_in_its_name() -> None:
    assert parse_url("hf://org/model@refs/pr/3/sub").revision == "refs/pr/3"
    assert parse_url("hf://org/model@runs%2Fstep_*").revision == "runs/step_*"
    assert parse_url("hf://datasets/org/data").root == "hf://datasets/org/data@main"


def test_a_next_page_on_another_server_is_not_followed(served: Served) -> None:
    served.page, there = 1, served.url
    served.url = "http://127.0.0.2:1"
    with pytest.raises(CheckpointFormatError, match="next page on another server"):
        open_folder("hf://org/model@v1").files  # noqa: B018
    served.url = there


def test_ls_of_a_pattern_says_what_would_be_read(served: Served, local: Path) -> None:
    from saturation.cli.text import describe_trajectory

    found = describe_trajectory(open_trajectory("hf://org/model@step_*"))
    expected = describe_trajectory(open_trajectory(local))
    assert {**found, "path": ""} == {**expected, "path": ""}
    assert served.sent("safetensors") < 20_000
    json.dumps(found)
