"""No traceback, whatever is asked: the whole command line over odd inputs, in its own processes.

Each command meets a third of the odd inputs in every run, and another third than the command before
it, so that each input meets some commands. Under the marker `slow` each command meets all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from forked_cli import Commands
from made_trajectory import write_trajectory

Odd = TypeVar("Odd")

FORESEEN = (0, 1, 2, 75)
MOST_LINES = 3
# Said where nothing else caught an error: each of them is a fault of ours.
UNFORESEEN = "This is a fault of saturation"
ODD_PATHS = (
    *("", " ", "nowhere", "a\0b", "a\udce9b", "x" * 300, "x/" * 3000, "empty", "bytes"),
    *("folder.yaml", "loop", "pipe", "/dev/full", "-", "file://", "http://"),
    *("http://127.0.0.1:99999/a.safetensors", "http://127.0.0.1:port/a", "http://[::1/a"),
    *("ftp://127.0.0.1:9/x", "nothing://x", "github://a:b@c/x", "hf://", "memory://", "://"),
    *("\x1b[31mred", "line\nend"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trajectory, a run of it, and things that are not what they are taken for."""
    place = tmp_path_factory.mktemp("odd")
    write_trajectory(place / "t", (0, 10, 20, 30))
    (place / "empty").write_bytes(b"")
    (place / "bytes").write_bytes(bytes(range(256)) * 8)
    (place / "folder.yaml").mkdir()
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "pipe")
    return place


@pytest.fixture(scope="module")
def command(place: Path) -> Iterator[Commands]:
    """The command line, in the folder `place`."""
    with Commands(str(place)) as run:
        status, _, said = run("measure", "t", "--measures", "norms", "--out", "run")
        assert status == 0, said
        yield run


EVERY_RUN = 3
SHARES = pytest.mark.parametrize(
    "every", [EVERY_RUN, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)


def _share(odds: Sequence[Odd], number: int, every: int) -> Sequence[Odd]:
    """Every so many of the odd inputs, for the command of that number."""
    return odds[number % every :: every]


def _check(result: tuple[int, str, str]) -> None:
    status, out, said = result
    shown = f"{status}: {said[-1000:]}"
    assert status in FORESEEN, shown
    assert "Traceback" not in out + said, shown
    assert UNFORESEEN not in said, shown
    # typer frames wrong usage, which is one sentence as well.
    assert status == 2 or said.count("\n") <= MOST_LINES, shown
    assert all(one.isprintable() or one == "\n" for one in out + said), shown
    assert status in (0, 2) or said.strip() or out.strip(), "a failure says something"


READING: dict[str, Callable[[str], tuple[str, ...]]] = {
    "ls": lambda odd: ("ls", odd),
    "ls --steps": lambda odd: ("ls", "t", "--steps", odd),
    "measure": lambda odd: ("measure", odd, "--measures", "norms", "--out", "r"),
    "measure --measures": lambda odd: ("measure", "t", "--measures", odd, "--out", "r"),
    "measure --shard": lambda odd: (
        *("measure", "t", "--measures", "norms", "--out", "r", "--shard", odd),
    ),
    "measure --tokens": lambda odd: (
        *("measure", "t", "--measures", "heads", "--out", "r", "--tokens", odd),
    ),
    "status": lambda odd: ("status", odd),
    "fit": lambda odd: ("fit", odd),
    "fit --scope": lambda odd: ("fit", "run", "--scope", odd),
    "fit --csv": lambda odd: ("fit", "--csv", odd),
    "audit": lambda odd: ("audit", odd),
    "report": lambda odd: ("report", odd, "--out", "page.html"),
    "pretrain": lambda odd: ("pretrain", odd),
    "run": lambda odd: ("run", odd),
    "export": lambda odd: ("export", odd, "--format", "csv", "--out", "t.csv"),
    "export --format": lambda odd: ("export", "run", "--format", odd, "--out", "t.csv"),
    "demo": lambda odd: ("demo", odd),
    "study": lambda odd: ("study", odd, "--out", "s"),
    "measures": lambda odd: ("measures", odd),
    "scan-snap": lambda odd: ("scan-snap", "--figure", "6", "--out", "s", "--last-tokens", odd),
}


@SHARES
@pytest.mark.parametrize("name", READING)
def test_what_cannot_be_read_is_one_sentence(command: Commands, name: str, every: int) -> None:
    for odd in _share(ODD_PATHS, list(READING).index(name), every):
        _check(command(*READING[name](odd)))


WRITING: dict[str, Callable[[str], tuple[str, ...]]] = {
    "measure": lambda odd: ("measure", "t", "--measures", "norms", "--out", odd),
    "report --out": lambda odd: ("report", "run", "--out", odd),
    "report --figures": lambda odd: ("report", "run", "--figures", odd),
    "export csv": lambda odd: ("export", "run", "--format", "csv", "--out", odd),
    "export parquet": lambda odd: ("export", "run", "--format", "parquet", "--out", odd),
    "export tensorboard": lambda odd: ("export", "run", "--format", "tensorboard", "--out", odd),
    "pretrain": lambda odd: ("pretrain", "pretrain.yaml", "--set", f"out={odd}"),
    "run": lambda odd: ("run", "run.yaml", "--set", f"out={odd}"),
}
# Where something may be written after all, and need not be by every command.
NOWHERE = (
    *("", "a\0b", "a\udce9b", "a\ud800b", "x" * 300, "x/" * 3000, "empty/below", "bytes", "loop"),
    # Devices are not written to here, since a fault would replace them for the whole machine.
    *("pipe", "/proc/nothing", "http://[::1/a", "nothing://x", "github://a:b@c/x"),
    *("s3://", "://", "."),
)
PRETRAIN = {
    "out": "trained",
    "steps": 1,
    "batch_size": 2,
    "model": {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8},
    "objective": {"input_length": 16},
}


@SHARES
@pytest.mark.parametrize("name", WRITING)
def test_where_nothing_can_be_written_is_one_sentence(
    command: Commands, place: Path, name: str, every: int
) -> None:
    # What these files ask for fails where it would write, and before it computes for long.
    (place / "pretrain.yaml").write_text(json.dumps({**PRETRAIN, "text": {"files": ["empty"]}}))
    experiment = {"out": "again", "report": "figures", "trajectory": "t", "measures": ["norms"]}
    (place / "run.yaml").write_text(json.dumps({**experiment, "report": "bytes/below"}))
    # A report is drawn before it is written, which takes seconds.
    often = 2 * every if name.startswith("report") else every
    for odd in _share(NOWHERE, list(WRITING).index(name), often):
        _check(command(*WRITING[name](odd)))


ODD_VALUES = (None, "x", 3, [], {}, [[1]], {"x": None}, True)
EDITED: dict[str, tuple[Any, ...]] = {
    "steps": (*ODD_VALUES, [0, 0], [2**80], [0, 10, 20, 30, 40], ["0"]),
    "arrays": (*ODD_VALUES, {"x": {"shape": [-1]}}, {"x": {"shape": "ab"}}),
    "bundles": (*ODD_VALUES, {"x": ["y"]}, {"x": [["y"]]}),
    "measures": (*ODD_VALUES, ["norms", "direction"], ["norms", "heads"], [["norms"]]),
    "versions": (*ODD_VALUES, {"norms": "x"}, {"norms": []}),
    "identity": (*ODD_VALUES, {"0": 3}),
    "layout": (None, "x", 0, 10**9, 1.5, [], True),
    "activations": (None, [], "x", 3, {"tokens": {"vocabulary": 3}}),
    "environment": (None, []),
    "trajectory": (None, 3),
}


@SHARES
def test_an_edited_run_file_is_one_sentence(command: Commands, place: Path, every: int) -> None:
    file = place / "edited" / "run.json"
    whole = (place / "run" / "run.json").read_bytes()
    if not file.parent.exists():
        file.parent.mkdir()
        os.symlink(place / "run" / "parts", file.parent / "parts")
    # As a former version wrote it, without a seal, by which any edit is noticed.
    former = {k: v for k, v in json.loads(whole).items() if k not in ("layout", "seal")}
    commands = (
        ("status", "edited"),
        ("export", "edited", "--format", "csv", "--out", "x.csv", "--partial"),
    )
    edits = [(key, value) for key, values in EDITED.items() for value in values]
    for number, asked in enumerate(commands):
        for key, value in _share(edits, number, every):
            file.write_text(json.dumps({**former, key: value}))
            _check(command(*asked))
    for content in (b"", b"[]", b"null", b"\xff", b"[" * 100_000, whole[:-9], b"9" * 5000):
        file.write_bytes(content)
        for asked in (("status", "edited"), ("report", "edited", "--out", "x.html")):
            status, out, said = command(*asked)
            _check((status, out, said))
            assert status == 1


CSVS: dict[str, bytes] = {
    "of text": b"step,norm\na,b\n",
    "short": b"step,norm\n1\n2\n",
    "long": b"step,norm\n1,2,3\n4,5,6,7\n",
    "with NUL": b"step,norm\n1,\0\n",
    "of one row": b"step,norm\n1,2\n",
    "of a head": b"step,norm\n",
    "of nothing": b"",
    "blank": b"\n\n\n",
    "of one step": b"step,norm\n" + b"1,2\n" * 9,
    "of NaN": b"step,norm\n" + b"".join(b"%d,nan\n" % i for i in range(9)),
    "of infinities": b"step,norm\n" + b"".join(b"%d,inf\n" % i for i in range(9)),
    "of steps NaN": b"step,norm\n" + b"".join(b"nan,%d\n" % i for i in range(9)),
    "to infinity": b"step,norm\n" + b"".join(b"%d,%d\n" % (i, i) for i in range(9)) + b"inf,1\n",
    "of negative steps": b"step,norm\n" + b"".join(b"%d,%d\n" % (-i, i) for i in range(9)),
    "of huge numbers": b"step,norm\n" + b"".join(b"%de300,%de300\n" % (i, i) for i in range(9)),
    "of tiny numbers": b"step,norm\n" + b"".join(b"%d,%de-320\n" % (i, i) for i in range(9)),
    "constant": b"step,norm\n" + b"".join(b"%d,1\n" % i for i in range(9)),
    "of zeros": b"step,norm\n" + b"".join(b"%d,0\n" % i for i in range(9)),
    "descending": b"step,norm\n" + b"".join(b"%d,%d\n" % (9 - i, i) for i in range(9)),
    "with a long cell": b"step,norm\n1," + b"x" * 200_000 + b"\n",
    "with an open quote": b'step,norm\n"1,2\n3,4',
    "with escape codes": b"step,norm\n1,\x1b[31m\n",
    "with an escape in its head": b"st\x1b[31mep,norm\n1,2\n",
    "of digits": b"step,norm\n" + b"9" * 5000 + b",1\n",
    "of UTF-16": "step,norm\n1,2\n".encode("utf-16"),
    "of everything": bytes(range(256)),
}


def test_a_series_that_is_none_is_one_sentence(command: Commands, place: Path) -> None:
    for content in CSVS.values():
        (place / "series.csv").write_bytes(content)
        _check(command("fit", "--csv", "series.csv"))
        _check(command("fit", "--csv", "series.csv", "--json", "--clock", "t"))
    rows = b"".join(b"%d,%d\n" % (i, i * i) for i in range(1, 9))
    (place / "series.csv").write_bytes(b"\xef\xbb\xbfstep,norm\r\n" + rows)
    status, out, said = command("fit", "--csv", "series.csv")
    assert status == 0, said
    assert "power" in out, "a byte order mark is no part of a column's name"


CONFIGS: dict[str, bytes] = {
    "a list": b"- 1\n- 2\n",
    "null": b"~\n",
    "NUL": b"out: a\0b\n",
    "an escaped NUL": b'out: "a\\0b"\nsteps: 1\n',
    "half a character": b'out: "\\ud800"\nsteps: 1\n',
    "escape codes": b'out: "\\e[31m"\nx: 1\n',
    "a bomb of aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "itself": b"&a\nb: *a\n",
    "open brackets": b"[" * 5000,
    "depth": b"a: " + b"[" * 3000 + b"]" * 3000,
    "a tag": b"!!python/object:os.system {}\n",
    "a number as key": b"1: 2\n",
    "nothing as key": b"~: 2\n",
    "a list as key": b"? [1, 2]\n: 3\n",
    "no date": b"out: 2001-99-99\n",
    "no truth": b"out: !!bool x\n",
    "no number": b'out: !!int ""\n',
    "digits": b"out: a\nsteps: " + b"9" * 6000 + b"\n",
    "infinity": b"out: a\nsteps: .inf\n",
    "NaN": b"out: a\nsteps: .nan\n",
    "bytes": bytes(range(256)),
    "UTF-16": "out: a\n".encode("utf-16"),
    "a long value": b"out: a\nsteps: " + b"x" * 100_000 + b"\n",
    "many steps": b"out: a\nsteps: 1e18\n",
}


OVERRIDES = (
    *("x", "=", "=1", ".=1", "a.b.c=1", "out.x=1", "steps=", "steps=x", "steps=[", "steps=!!int"),
    *("steps=-1", "steps=1e99", "seed=99999999999999999999", "model=1", "model.emb_dim=0"),
    *("model.num_heads=x", "out=", "dtype=int8", "text.files=x", "text.files=[pipe]"),
    *("text.files=[/dev/null]", "text.files=[bytes]", "text.files=['a\0b']", "text.files=['']"),
    *("text.vocabulary=bytes.json", "text.vocabulary=pipe", "text.vocabulary=''"),
    *("text.vocabulary='http://[::1/x.json'", "checkpoints=[5]", "checkpoints.every=0"),
    *("checkpoints.log_spaced=999999999", "checkpoints={}", "checkpoints=[-1]"),
    *("optimizer.name=x", "optimizer.learning_rate=nan", "optimizer.schedule=x"),
    *("objective.noise_density=2", "objective.input_length=1", "batch_size=0"),
    *("model.mlp_activations=[x]", "model.mlp_activations=[]", "\udce9=1", "out=\udce9"),
)


@SHARES
def test_a_configuration_that_is_none_is_one_sentence(
    command: Commands, place: Path, every: int
) -> None:
    for number, name in enumerate(("pretrain", "run", "ls")):
        for content in _share(list(CONFIGS.values()), number, every):
            (place / "odd.yaml").write_bytes(content)
            _check(command(name, "odd.yaml"))


@SHARES
def test_an_override_that_is_none_is_one_sentence(
    command: Commands, place: Path, every: int
) -> None:
    (place / "fine.yaml").write_text(json.dumps(PRETRAIN))
    for override in _share(OVERRIDES, 0, every):
        _check(command("pretrain", "fine.yaml", "--set", override))


def test_streams_that_are_closed_or_full_do_not_end_the_work(
    command: Commands, place: Path
) -> None:
    measure = ("measure", "t", "--measures", "norms", "--out")
    for number, stderr in enumerate((None, "/dev/full")):
        status, _, _ = command(*measure, f"streams{number}", stderr=stderr)
        assert status == 0
        assert list((place / f"streams{number}").rglob("*.parquet")), "the work was done"
    status, _, said = command("ls", "t", stdout="/dev/full")
    _check((status, "", said))
    assert status == 1
    assert "No space left" in said


def test_a_folder_that_was_deleted_is_one_sentence(command: Commands, place: Path) -> None:
    for asked in (
        ("ls", "."),
        ("ls", "t"),
        ("measure", place / "t", "--measures", "norms", "--out", "rel"),
        ("status", "run"),
        ("export", place / "run", "--format", "csv", "--out", "x.csv"),
        ("report", place / "run", "--out", "x.html"),
        ("audit", "t"),
        ("fit", "--csv", "x.csv"),
        ("pretrain", "x.yaml"),
        ("run", "x.yaml"),
        ("demo", "nothing", "--out", "x"),
    ):
        status, out, said = command(*asked, folder="")
        _check((status, out, said))
        assert status == 1


ODD_NUMBERS = ("", "x", "-1", "0", "1.5", "1e9", "nan", "9" * 5000, "\u0663", "0x10", " 1")
NUMBERED: tuple[tuple[str, ...], ...] = (
    ("ls", "t", "--steps"),
    ("audit", "t", "--every"),
    ("measure", "t", "--measures", "norms", "--out", "n", "--shard"),
    ("measure", "t", "--measures", "heads", "--out", "n", "--sequences"),
    ("measure", "t", "--measures", "heads", "--out", "n", "--length"),
    ("measure", "t", "--measures", "heads", "--out", "n", "--mesh"),
    ("measure", "t", "--measures", "heads", "--out", "n", "--batch-size"),
    ("measure", "t", "--measures", "saturation", "--out", "n", "--limits"),
    ("measure", "t", "--measures", "saturation", "--out", "n", "--scale"),
    ("fit", "run", "--clock"),
    ("scan-snap", "--out", "s", "--figure"),
)


@SHARES
@pytest.mark.parametrize(
    "number", range(len(NUMBERED)), ids=[" ".join((one[0], one[-1])) for one in NUMBERED]
)
def test_numbers_that_are_none_are_one_sentence(command: Commands, number: int, every: int) -> None:
    for odd in _share(ODD_NUMBERS, number, every):
        # Short of the model's own vocabulary: what the number would ask for is not computed.
        _check(command(*NUMBERED[number], odd))


@SHARES
def test_parts_that_are_none_are_one_sentence(command: Commands, place: Path, every: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert command("measure", "t", "--measures", "norms", "--out", "parts")[0] == 0
    part = min((place / "parts" / "parts" / "norms").iterdir())
    whole = part.read_bytes()
    table = pq.read_table(part)

    def written(changed: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        return sink.getvalue().to_pybytes()

    texts = pa.array(["x"] * len(table))
    at = {name: table.schema.get_field_index(name) for name in ("array", "step", "square_sum")}
    contents = [b"", b"PAR1", whole[:-9], b"x" * len(whole), written(table.slice(0, 1))]
    for name, position in at.items():
        if position >= 0:
            contents.append(written(table.set_column(position, name, texts)))
            contents.append(written(table.remove_column(position)))
    contents.append(written(table.set_column(at["step"], "step", pa.nulls(len(table)))))
    contents.append(written(table.set_column(at["step"], "step", pa.array([2.5] * len(table)))))
    commands = (
        ("status", "parts"),
        ("fit", "parts"),
        ("report", "parts", "--out", "x.html", "--partial"),
    )
    for number, asked in enumerate(commands):
        for content in _share(contents, number, every):
            part.write_bytes(content)
            _check(command(*asked))
    part.unlink()
    for make in (part.mkdir, lambda: os.mkfifo(part), lambda: part.symlink_to(part.name)):
        make()
        for asked in (("status", "parts"), ("export", "parts", "--format", "csv", "--out", "x")):
            _check(command(*asked))
        part.rmdir() if part.is_dir() else part.unlink()


def test_the_program_itself_ends_so_too(place: Path) -> None:
    """Once as a user starts it, with what only a shell does."""
    if not (Path(sys.executable).with_name("saturation")).exists():
        pytest.skip("the command `saturation` is not installed beside this Python")
    program = str(Path(sys.executable).with_name("saturation"))
    for line, expected in (
        (f"{program} ls t 2>&-", 0),
        (f"{program} ls t >&-", 0),
        (f"{program} ls nowhere 2>&- >&-", 1),
        (f"{program} ls t </dev/null >/dev/full", 1),
    ):
        done = subprocess.run(
            ["bash", "-c", line], cwd=place, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr


def test_the_last_net_says_whose_fault_it_is(monkeypatch, capsys) -> None:
    from saturation.cli import commands as cli

    def broken() -> None:
        raise KeyError("a bug\n\x1b[31m")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(sys, "argv", ["saturation"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert UNFORESEEN in said
    assert "KeyError" in said
    assert said.count("\n") == 1
    assert "\x1b" not in said
    monkeypatch.setattr(sys, "argv", ["saturation", "--debug"])
    with pytest.raises(KeyError):
        cli.main()
