"""A bucket, served by an emulator on this machine: the same arrays and table as from the folder."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import many_processes
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
from checkpoint_writers import nested, t5_parameters, write_t5x
from made_trajectory import write_trajectory
from servers import write_large

import saturation
from saturation.checkpoints import open_folder
from saturation.errors import CheckpointFormatError, ResultsError, Stopped, TrajectoryError
from saturation.results.folder import RunFolder
from saturation.runs.measure import measure
from saturation.training import loop
from saturation.training.config import PretrainConfig
from saturation.training.loop import pretrain
from saturation.trajectory.trajectory import open_trajectory

# gcsfs looks at this on import; the emulator lacks what it would ask otherwise.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
gcsfs = pytest.importorskip("gcsfs", reason="reading buckets needs gcsfs (the extra 'gcs')")
emulator = pytest.importorskip(
    "gcp_storage_emulator.server", reason="no bucket to read from without gcp-storage-emulator"
)
emulator_objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")

BUCKET = "saturation-test"
STEPS = (0, 10)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[Path, str], None]]:
    """Run the emulator, and return the function that puts a folder into its bucket."""
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    port = server._api._httpd.server_port

    def put(folder: Path, name: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                connection = http.client.HTTPConnection("127.0.0.1", port)
                key = urllib.parse.quote(f"{name}/{file.relative_to(folder).as_posix()}", safe="")
                path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={key}"
                headers = {"Content-Type": "application/octet-stream"}
                connection.request("POST", path, file.read_bytes(), headers)
                assert connection.getresponse().status == 200
                connection.close()

    answer = emulator_objects.download

    def with_generation(request, response, storage, *more, **options):
        """As Google does, and TensorStore asks before it writes again."""
        answer(request, response, storage, *more, **options)
        if response.status < 300:
            names = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

    with pytest.MonkeyPatch.context() as environment:
        environment.setattr(emulator_objects, "download", with_generation)
        for _, handlers in emulator.HANDLERS:
            for method, handler in handlers.items():
                if handler is answer:  # gcsfs's way to it
                    environment.setitem(handlers, method, with_generation)
        # The first is for gcsfs, the other for TensorStore, by which Orbax writes.
        environment.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
        yield put
    server.stop()


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what gcsfs received of files, one a request."""
    sizes: list[int] = []
    original = gcsfs.GCSFileSystem._cat_file

    async def counted(self, path, start=None, end=None, **options):
        assert start is not None
        assert end is not None
        data = await original(self, path, start=start, end=end, **options)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_cat_file", counted)
    return sizes


def write_hugging_face(folder: Path) -> None:
    write_trajectory(folder, STEPS)


def write_legacy_t5x(folder: Path) -> None:
    for step in STEPS:
        arrays = t5_parameters(step, layers=1)
        write_t5x(folder / f"checkpoint_{step}", arrays, chunks=lambda s: (s[0] // 2, *s[1:]))


def write_orbax(folder: Path) -> None:
    for step in STEPS:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = {"params": nested(t5_parameters(step))}
            checkpointer.save(folder.absolute() / str(step), tree)


@pytest.mark.parametrize("write", [write_hugging_face, write_legacy_t5x, write_orbax])
def test_arrays_are_those_of_the_local_folder(tmp_path, bucket, write) -> None:
    write(tmp_path)
    bucket(tmp_path, write.__name__)
    found, expected = open_trajectory(f"gs://{BUCKET}/{write.__name__}"), open_trajectory(tmp_path)
    assert found.remote
    assert (found.steps, found.format) == (expected.steps, expected.format)
    for one, other in zip(found, expected, strict=True):
        assert one.parameters == other.parameters
        for name in other.parameters:
            np.testing.assert_array_equal(one.read(name), other.read(name))


def test_the_table_is_that_of_the_local_folder(tmp_path, bucket) -> None:
    write_trajectory(tmp_path / "local", (0, 10, 30))
    bucket(tmp_path / "local", "table")
    tables = []
    for number, path in enumerate((tmp_path / "local", f"gs://{BUCKET}/table")):
        out = str(tmp_path / f"run_{number}")
        measure(open_trajectory(path), ["norms", "direction"], out)
        tables.append(saturation.load_results(out))
    assert len(tables[0]) > 100
    assert tables[0].equals(tables[1])


def test_processes_that_share_no_disk_write_one_run_into_a_bucket(tmp_path, bucket) -> None:
    """As the hosts of a pod do; started again they find all of it there."""
    write_trajectory(tmp_path / "local", (0, 10))
    bucket(tmp_path / "local", "pod/t")
    (tmp_path / "t.jsonl").write_text("[3, 1, 4, 1]\n[5, 9]\n")
    run = f"gs://{BUCKET}/pod/run"
    arguments = ("--measures", "norms,direction,heads", "--tokens", tmp_path / "t.jsonl")
    for said in ("parts computed, 0 reused", "0 parts computed"):
        ended = many_processes.measure(
            f"gs://{BUCKET}/pod/t", run, *arguments, processes=2, devices=1
        )
        assert [process.code for process in ended] == [0, 0], ended
        assert said in ended[0].out
    command = ["measure", tmp_path / "local", "--out", tmp_path / "one", *arguments]
    subprocess.run([many_processes.COMMAND, *map(str, command)], check=True)
    key = ["step", "measure", "metric", "scope"]
    there, here = (saturation.load_results(r).set_index(key).value for r in (run, tmp_path / "one"))
    pd.testing.assert_series_equal(there, here, rtol=1e-5, atol=1e-6)


def test_a_t5x_checkpoint_opens_in_few_requests(tmp_path, bucket, received) -> None:
    write_legacy_t5x(tmp_path)
    bucket(tmp_path, "few")
    checkpoint = open_trajectory(f"gs://{BUCKET}/few/checkpoint_10")[10]
    opened = len(received)
    # The index, and the description of each array that is not written into it.
    assert opened <= 2 + sum(1 for p in checkpoint.parameters.values() if len(p.shape) == 2)
    name = "encoder/layers_0/mlp/wo/kernel"
    checkpoint.read(name, (slice(0, 8),))
    assert len(received) == opened + 1  # the one chunk that holds the slice


def test_of_a_large_file_only_the_bytes_asked_for_travel(tmp_path, bucket, received) -> None:
    assert write_large(tmp_path / "step_5") > 10**8
    bucket(tmp_path, "large")
    checkpoint = open_trajectory(f"gs://{BUCKET}/large")[5]
    assert checkpoint.read("layer/7/weight", (slice(0, 1000),)).sum() == 7 * 10**6
    checkpoint.read("layer/3/weight")
    wanted = 4 * 10**6 + 10**7
    assert wanted <= sum(received) <= 1.01 * wanted


def test_an_object_that_is_replaced_is_noticed(tmp_path, bucket, received) -> None:
    write_trajectory(tmp_path / "run", STEPS)
    bucket(tmp_path / "run", "replaced")
    trajectory = open_trajectory(f"gs://{BUCKET}/replaced")
    for checkpoint in trajectory:
        checkpoint.load()
    write_trajectory(tmp_path / "other", STEPS, lambda _, one: {k: -v for k, v in one.items()})
    bucket(tmp_path / "other/step_10", "replaced/step_10")
    trajectory[0].load()
    before = len(received)
    with pytest.raises(CheckpointFormatError, match="has changed since it was listed, its version"):
        trajectory[10].load()
    assert len(received) == before + 1


def test_the_dry_run_says_what_is_read(tmp_path, bucket, received) -> None:
    from saturation.runs.plan import Shard, planned_work

    write_trajectory(tmp_path / "local", (0, 10, 30))
    bucket(tmp_path / "local", "planned")
    trajectory = open_trajectory(f"gs://{BUCKET}/planned")
    planned = planned_work(trajectory, ["norms"], str(tmp_path / "run"), Shard())
    before = sum(received)
    measure(trajectory, ["norms"], str(tmp_path / "run"))
    read = sum(received) - before
    # Beside the arrays, `run.json` fingerprints the first and the last checkpoint.
    assert abs(read - planned["bytes"]) <= 0.05 * planned["bytes"]


def test_a_single_file_and_what_is_not_there(tmp_path, bucket) -> None:
    write_trajectory(tmp_path, (20,))
    bucket(tmp_path, "file")
    one = open_trajectory(f"gs://{BUCKET}/file/step_20/model.safetensors")
    assert one.steps == (20,)
    assert open_folder(f"gs://{BUCKET}/file/step_20").digest("model.safetensors")
    with pytest.raises(TrajectoryError, match=r"gs://.*/nothing: no such folder or file"):
        open_trajectory(f"gs://{BUCKET}/nothing")
    with pytest.raises(TrajectoryError, match="gs://no-such-bucket/x: no such folder or file"):
        open_trajectory("gs://no-such-bucket/x")


def test_every_fixture_is_read_from_a_bucket(fixtures, bucket) -> None:
    for name in ("hf_sharded", "mtf", "t5x_orbax", "t5x_orbax_2024", "orbax_zarr3", "hf_bin"):
        bucket(fixtures / "v1_0" / name, f"fixtures/{name}")
        found = open_trajectory(f"gs://{BUCKET}/fixtures/{name}")
        expected = open_trajectory(fixtures / "v1_0" / name)
        assert found.steps == expected.steps, name
        last = expected.steps[-1]
        for array in expected[last].parameters:
            assert found[last].read(array).tobytes() == expected[last].read(array).tobytes()


def test_a_pretraining_goes_on_in_a_bucket_to_the_bits_of_one_on_a_disk(
    tmp_path, bucket, monkeypatch
) -> None:
    def settings(out: str) -> PretrainConfig:
        model = {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 16}
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        about = {"steps": 6, "batch_size": 2, "checkpoints": [2], "log_every": 1}
        return PretrainConfig.model_validate(
            {"out": out, "model": model | layers, "objective": {"input_length": 24}, **about}
        )

    whole, out = pretrain(settings(str(tmp_path / "whole"))), f"gs://{BUCKET}/trained"
    stop = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: nullcontext(stop))
        stop.set()  # as a signal before the first update
        with pytest.raises(Stopped, match=f"{out}: the pretraining stopped at step 1 of 6"):
            pretrain(settings(out))
    assert list(open_trajectory(out).steps) == [0]
    assert str(pretrain(settings(out))) == out
    found, expected = open_trajectory(out), open_trajectory(whole)
    assert found.steps == expected.steps == (0, 2, 6)
    for step in found.steps:
        for name in expected[step].parameters:
            assert found[step].read(name).tobytes() == expected[step].read(name).tobytes()
    there, here = RunFolder(out), RunFolder(whole)
    assert there.read("log.csv") == here.read("log.csv")
    sessions = json.loads(there.read("pretrain.json") or b"")["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 1]
    before = there.read("pretrain.json")
    pretrain(settings(out))  # there is nothing left to do
    assert there.read("pretrain.json") == before
    with pytest.raises(ResultsError, match=f"{out}: holds another pretraining, with config.steps"):
        pretrain(settings(out).model_copy(update={"steps": 8}))
    with pytest.raises(ResultsError, match="gs://no-such-bucket/run: there is no such bucket"):
        pretrain(settings("gs://no-such-bucket/run"))
