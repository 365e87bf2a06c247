"""The loop that trains a model and leaves its trajectory behind."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from saturation.errors import ResultsError, Stopped
from saturation.models import T5
from saturation.runtime.progress import Progress
from saturation.runtime.signals import stop_requested
from saturation.text.corpus import read_corpus
from saturation.text.span_corruption import lengths_to_fill
from saturation.text.vocabulary import embedding_rows, open_to_pretrain
from saturation.training.config import PretrainConfig
from saturation.training.data import SpanCorruptionBatches
from saturation.training.folder import (
    Log,
    OutputPath,
    check_identity,
    keep_vocabulary,
    open_place,
    read_log,
    start_session,
)
from saturation.training.optimizers import build_optimizer, build_schedule
from saturation.training.step import TrainState, Update, initial_state, make_update, model_config
from saturation.training.store import CheckpointWriter

SECONDS_BETWEEN_REPORTS = 0.5


def pretrain(config: PretrainConfig, progress: Progress | None = None) -> OutputPath:
    """Train a T5 by span corruption and write its trajectory to `config.out`.

    A folder that holds part of this very run is gone on with, from the last complete checkpoint,
    to the same bits that an uninterrupted run gives; one that holds all of it is left as it is.
    SIGTERM and SIGINT end the run after the update in progress, with a state to go on from.

    Args:
        config: what to train, on what and how.
        progress: told of every step, if given.

    Returns:
        The folder or the place in a bucket, which `open_trajectory` reads.

    Raises:
        ConfigError: when the configuration cannot be carried out.
        ResultsError: when the folder holds another run, or cannot be written.
        Stopped: when a signal ended it.
    """
    folder = open_place(config.out)
    chosen = config.checkpoints.chosen(config.steps)
    batches, identity = _prepare(config)
    check_identity(folder, identity)
    store = CheckpointWriter(folder)
    try:
        _refuse_lost(store, chosen)
        if store.latest != config.steps:
            run = _begin(config, batches, store)
            start_session(folder, identity, run.first, jax.devices()[0].device_kind)
            keep_vocabulary(folder, batches.vocabulary.file)
            with stop_requested() as stop:
                _train(run, chosen, store, stop, progress or Progress("", "steps", quiet=True))
    finally:
        store.close()
    return folder


def _refuse_lost(store: CheckpointWriter, chosen: tuple[int, ...]) -> None:
    """Raise `ResultsError` where a checkpoint that was written is gone, or the log is damaged."""
    made = [step for step in chosen if store.latest is not None and step <= store.latest]
    lost = [step for step in made if step not in store.steps]
    if lost:
        raise ResultsError(
            f"{store.folder}: the pretraining is past step {lost[-1]}, and of its checkpoints "
            f"{', '.join(map(str, lost[:5]))}{' and others' * (len(lost) > 5)} can no longer be "
            "found. Restore what is lost; or, to train again, set another `out`."
        )
    read_log(store.folder)


def _prepare(config: PretrainConfig) -> tuple[SpanCorruptionBatches, dict[str, Any]]:
    """The batches, and all that decides the trajectory: what pretrain.json records."""
    corpus = read_corpus(config.text.files)
    vocabulary = open_to_pretrain(config.text.vocabulary)
    objective = config.objective
    lengths = lengths_to_fill(
        objective.input_length, objective.noise_density, objective.mean_span_length
    )
    tokens = vocabulary.encode(corpus.text)
    batches = SpanCorruptionBatches(tokens, vocabulary, lengths, config.batch_size, config.seed)
    text = {"sources": list(corpus.sources), "sha256": corpus.sha256, "tokens": len(tokens)}
    identity = {
        "config": config.model_dump(mode="json", exclude={"out"}),
        "text": text,
        "vocabulary": vocabulary.fingerprint,
        "lengths": lengths._asdict(),
    }
    return batches, identity


@dataclass
class _Run:
    """A training in progress: its state, and the functions that carry it on."""

    config: PretrainConfig
    state: TrainState
    update: Update
    batches: SpanCorruptionBatches
    first: int


def _begin(config: PretrainConfig, batches: SpanCorruptionBatches, store: CheckpointWriter) -> _Run:
    """At the last checkpoint, or at the initialisation where there is none."""
    model = T5(model_config(config, embedding_rows(batches.vocabulary)))
    schedule = build_schedule(config.optimizer, config.steps)
    optimizer = build_optimizer(config.optimizer, config.steps)
    state = initial_state(model, optimizer, batches(0), config.seed)
    if store.latest is not None:
        state = store.restore(store.latest, like=state)
    return _Run(
        config=config,
        state=state,
        update=make_update(model, optimizer, schedule, config.dtype),
        batches=batches,
        first=store.latest or 0,
    )


def _train(
    run: _Run,
    chosen: tuple[int, ...],
    store: CheckpointWriter,
    stop: threading.Event,
    progress: Progress,
) -> None:
    """Make the updates that are left, with the checkpoints and the rows of the log."""
    reporter = _Reporter(run, Log(store.folder, run.first), progress)
    if run.first == 0 and not store.steps:
        store.save(run.state)
    for step in range(run.first + 1, run.config.steps + 1):
        # The first call returns when the update is compiled, and before it has run.
        with reporter.compiling() if step == run.first + 1 else nullcontext():
            run.state, metrics = run.update(run.state, run.batches(step - 1))
        reporter.add(step, metrics)
        if step in chosen:
            reporter.keep()
            store.save(run.state)
        if stop.is_set() and step < run.config.steps:
            reporter.keep()
            store.save_to_resume(run.state)
            raise Stopped(
                f"{store.folder}: the pretraining stopped at step {step} of {run.config.steps}; "
                "the same command goes on from there."
            )


class _Reporter:
    """Rows of the log and the progress, taken from the device a few times a second.

    Asking for a loss waits for its update, so that asking after each one would keep the host
    from preparing the next batch meanwhile.
    """

    def __init__(self, run: _Run, log: Log, progress: Progress) -> None:
        self._run, self._log, self._progress = run, log, progress
        self._waiting: list[tuple[int, Any]] = []
        self._flushed = time.monotonic()
        progress.start(run.config.steps, run.first)

    def compiling(self) -> AbstractContextManager[None]:
        """Say that the update is being compiled."""
        return self._progress.compiling()

    def add(self, step: int, metrics: Any) -> None:
        self._waiting.append((step, metrics))
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_REPORTS:
            self.flush()

    def keep(self) -> None:
        """See that all rows are where they belong, before a checkpoint says that they are."""
        self.flush()
        self._log.keep()

    def flush(self) -> None:
        """Write what is waiting."""
        rows = [
            {"step": step, **{name: float(value) for name, value in metrics.items()}}
            for step, metrics in jax.device_get(self._waiting)
        ]
        every, last = self._run.config.log_every, self._run.config.steps
        self._log.append([row for row in rows if row["step"] % every == 0 or row["step"] == last])
        if rows:
            note = f"loss {rows[-1]['loss']:.3f}, norm {rows[-1]['norm']:.2f}"
            self._progress.advance(len(rows), note)
        self._waiting, self._flushed = [], time.monotonic()
