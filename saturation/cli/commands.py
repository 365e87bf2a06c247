"""The command line: parse, call, print. Everything it does is a function of the package.

Exit 0: all that was asked is done. 1: it failed, with one clear sentence on stderr. 2: wrong usage.
75: stopped by a signal; the same command resumes.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

from saturation.cli.measure import measure_trajectory
from saturation.cli.options import (
    JsonOption,
    NamesOption,
    RunArgument,
    StepsOption,
    TrajectoryArgument,
    WithActivationOptions,
)
from saturation.cli.output import print_result, progress_of, say
from saturation.errors import SaturationError, Stopped, escaped
from saturation.runtime.progress import Forgiving
from saturation.runtime.signals import stop_requested
from saturation.runtime.tuning import before_imports

EXIT_FAILED, EXIT_RESUMABLE = 1, 75
_MOST_CHARACTERS = 2000  # of an error: a name may have any number

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure what pretraining does to a transformer's parameters and attention, "
    "from its checkpoints. Add --debug to any command for a traceback of its error.",
)

PartialOption = Annotated[bool, typer.Option("--partial", help="Take an incomplete run as it is.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable."),
]


def _show_version(asked: bool) -> bool:
    if asked:
        from saturation.runs.run_json import version_text

        typer.echo(version_text())
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the versions of this and of JAX, the platform and the devices, and exit.",
        ),
    ] = False,
) -> None:
    pass


@app.command("ls")
def list_trajectory(
    trajectory: TrajectoryArgument,
    steps: StepsOption = None,
    names: NamesOption = "canonical",
    as_json: JsonOption = False,
) -> None:
    """List a trajectory: its steps, format, arrays, parameters and bytes."""
    from saturation.cli.text import describe_trajectory, trajectory_text
    from saturation.trajectory.trajectory import open_trajectory

    described = describe_trajectory(open_trajectory(trajectory, steps, names))
    print_result(described if as_json else trajectory_text(described))


@app.command("measures")
def list_measures(as_json: JsonOption = False) -> None:
    """List every measure with its definition, source and metrics."""
    from saturation.cli.text import describe_measures, measures_text

    described = describe_measures()
    print_result(described if as_json else measures_text(described))


app.command("measure", cls=WithActivationOptions)(measure_trajectory)


@app.command("status")
def show_status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what of a run is there and what is missing."""
    from saturation.cli.text import status_text
    from saturation.results.state import open_run

    found = open_run(run).status(verified=True)
    print_result(found.to_json() if as_json else status_text(run, found))


@app.command("fit")
def fit_growth_laws(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A measured run.")] = None,
    scope: Annotated[str, typer.Option("--scope", help="Whose l2 norm is fitted.")] = "blocks",
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Fit a column of a CSV file instead."),
    ] = None,
    x: Annotated[str, typer.Option("--x", help="The CSV's column of steps.")] = "step",
    y: Annotated[str, typer.Option("--y", help="The CSV's column of values.")] = "norm",
    clock: Annotated[
        str | None,
        typer.Option(
            "--clock", help="Of the errors: index, t or 'ln t'; the likeliest if left out."
        ),
    ] = None,
    partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the growth laws a·g(t) + b to a norm: linear, √t, t^¼, ln(1+t) and the free power."""
    from saturation.cli.text import fits_json, fits_text
    from saturation.growth.fit import fit_all
    from saturation.growth.series import read_csv_series
    from saturation.results.table import scope_norm

    if (run is None) == (csv is None):
        raise typer.BadParameter("give either a RUN or --csv FILE")
    series = read_csv_series(csv, x, y) if csv else scope_norm(str(run), scope, partial)
    fits = fit_all(*series, clock)
    print_result(fits_json(fits, *series) if as_json else fits_text(fits, *series))


@app.command("audit")
def audit_trajectory(
    trajectory: TrajectoryArgument,
    steps: StepsOption = None,
    every: Annotated[
        int | None,
        typer.Option("--every", min=1, help="The spacing there should be; inferred where even."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every byte, not samples of large checkpoints.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for what is missing, damaged, doubled or out of place; exit 1 if anything is."""
    from saturation.cli.text import audit_text
    from saturation.trajectory.audit import audit
    from saturation.trajectory.survey import without_checksums
    from saturation.trajectory.trajectory import open_trajectory

    opened = open_trajectory(trajectory, steps)
    findings = audit(opened, every, full)
    without = without_checksums(opened)
    described = {
        "path": opened.path,
        "steps": list(opened.steps),
        "findings": [finding.to_json() for finding in findings],
        "without_checksums": {str(step): list(files) for step, files in without.items()},
    }
    print_result(described if as_json else audit_text(opened, findings, without))
    if findings:
        raise typer.Exit(EXIT_FAILED)


@app.command("report")
def write_report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Measured runs.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE.html", help="An interactive page that works offline."),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option("--figures", metavar="DIR", help="Folder for PNG, PDF and summary.txt."),
    ] = None,
    partial: PartialOption = False,
) -> None:
    """Draw the figures of one or several runs, and write a text or a page that explains them."""
    from saturation.report.write import report

    if out is None and figures is None:
        raise typer.BadParameter("give --out FILE.html, --figures DIR, or both")
    for path in report(runs, figures=figures, page=out, partial=partial):
        say(path)


@app.command("pretrain")
def pretrain_model(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: SetOption = None,
) -> None:
    """Pretrain a small T5 and write the trajectory of its checkpoints."""
    from saturation.config.files import load_config
    from saturation.training.config import PretrainConfig

    settings = load_config(config, _parse_overrides(overrides), PretrainConfig, "pretrain")
    from saturation.training import pretrain  # seconds, which a mistake in the file need not wait

    with progress_of("Pretraining", "steps") as progress:
        folder = pretrain(settings, progress)
    say(f"The trajectory is in {folder}; list it with `saturation ls {folder}`.")


@app.command("run")
def run_experiment_file(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: SetOption = None,
) -> None:
    """Do all that an experiment file says: trajectory, measures, fits and figures."""
    from saturation.config.files import load_config
    from saturation.experiment import ExperimentConfig, run_experiment

    say(run_experiment(load_config(config, _parse_overrides(overrides), ExperimentConfig)))


@app.command("study")
def run_study(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Left out, the studies are listed.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Folder; another run resumes there.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="By default the study's own number.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first; others follow it.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Take the larger settings too.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Run all studies, each into a folder of its name in DIR.")
    ] = False,
    shard: Annotated[
        str,
        typer.Option("--shard", metavar="I/N", help="With --all: every Nth study, from the Ith."),
    ] = "0/1",
) -> None:
    """Test a paper's claims in simulation, beside controls that must miss; exit 1 if any fails."""
    from saturation.studies import STUDIES, about, find_study

    if every == (name is not None):
        if every:
            raise typer.BadParameter("give either a NAME or --all")
        for study in STUDIES:
            title, paper = about(study)
            say(f"{study:24}{title}\n{'':24}{paper}")
        return
    if name is not None:
        find_study(name)  # before anything else is asked for
    if out is None:
        raise typer.BadParameter("give --out DIR")
    from saturation.runs.plan import Shard
    from saturation.studies.base import Settings
    from saturation.studies.output import study_text, write_study

    part = Shard.parse(shard)
    places = {name: out} if name else {one: f"{out.rstrip('/')}/{one}" for one in STUDIES}
    failed = False
    for study, place in [*places.items()][part.index :: part.count]:
        with stop_requested() as stop, progress_of(f"Simulating {study}", "parts") as progress:
            result = find_study(study).run(Settings(seeds, seed, full, place), progress, stop)
        for line in (study_text(result), *write_study(result, place)):
            say(line)
        failed |= bool(result.failed)
    if failed:
        raise typer.Exit(EXIT_FAILED)


@app.command("scan-snap")
def reproduce_scan_snap(
    figure: Annotated[int, typer.Option("--figure", help="3, 4 or 6 of arXiv 2305.16380.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for CSV, PNG and PDF.")],
    last_tokens: Annotated[
        str, typer.Option("--last-tokens", metavar="N[,N…]", help="Panels of figure 6.")
    ] = "1,3,5,10",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Of figure 6.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="All others follow from it.")] = 0,
) -> None:
    """Simulate one layer of attention learning which tokens matter, beside its theory."""
    from saturation.studies.scan_snap.study import reproduce

    if not all(number.strip().isdecimal() for number in last_tokens.split(",")):
        raise typer.BadParameter(f"--last-tokens takes whole numbers, found {last_tokens!r}")
    numbers = [int(number) for number in last_tokens.split(",")]
    with progress_of("Training", "trainings") as progress:
        paths = reproduce(figure, out, numbers, seeds, seed, progress)
    for path in paths:
        say(path)


@app.command("demo")
def show_demo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="oversmoothing.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Folder for a CSV and a picture.")
    ] = None,
) -> None:
    """Run a planted example, prediction beside measurement; exit 1 if any prediction fails."""
    from saturation.studies import demo

    text, agrees, paths = demo(name, out)
    for line in (text, *paths):
        say(line)
    if not agrees:
        raise typer.Exit(EXIT_FAILED)


@app.command("export")
def export_run(
    run: RunArgument,
    kind: Annotated[str, typer.Option("--format", help="csv, parquet or tensorboard.")],
    out: Annotated[
        str, typer.Option("--out", metavar="PATH", help="File (tensorboard: folder) to write.")
    ],
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="CSV: no ' before names that a spreadsheet would take for a formula."
        ),
    ] = False,
    partial: PartialOption = False,
) -> None:
    """Write a run's table for another tool."""
    from saturation.report.export import export
    from saturation.results.table import load_results

    export(load_results(run, partial=partial), kind, out, raw)
    say(f"Wrote {out}.")


def main() -> None:
    """Run the command line; every foreseen error is one sentence on stderr."""
    before_imports()
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.stdout, sys.stderr = sys.stdout or Forgiving(None), Forgiving(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            try:
                app()
            finally:
                # Here, where a full disk can still be said, and not when Python ends.
                sys.stdout.flush()
    except SaturationError as error:
        if debug:
            raise
        _fail(str(error), EXIT_RESUMABLE if isinstance(error, Stopped) else EXIT_FAILED)
    except (OSError, MemoryError) as error:
        if debug:
            raise
        sys.stdout = Forgiving(None)  # what could not be written is not tried again
        _fail(_system_error(error), EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        _fail(_unforeseen(error), EXIT_FAILED)


def _fail(text: str, status: int) -> NoReturn:
    text = " ".join(text.splitlines())  # one sentence, whatever a file's name or a server put in
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS // 2]} … {text[-_MOST_CHARACTERS // 2 :]}"
    print(f"saturation: {escaped(text)}", file=sys.stderr)
    sys.exit(status)


def _unforeseen(error: Exception) -> str:
    """Return the last net's sentence: nothing that was foreseen is caught by it."""
    return (
        f"This is a fault of saturation ({type(error).__name__}: {error}). Please report it with "
        "what --debug, added to the same command, shows."
    )


def _system_error(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "The machine has no memory left for this; give it more, or ask for less at a time."
    where = f" ({error.filename})" if getattr(error, "filename", None) else ""
    return f"The system refused: {error.strerror or error}{where}. See with --debug where."


def _say_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"saturation: {escaped(str(message))}", file=sys.stderr)


def _parse_overrides(items: list[str] | None) -> dict[str, str]:
    for item in items or []:
        if "=" not in item:
            raise typer.BadParameter(f"--set takes KEY=VALUE, found {item!r}")
    return dict(item.split("=", 1) for item in items or [])
