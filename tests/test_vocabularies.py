"""Tokens are of the model's own vocabulary: asked for, or found beside its checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from activation_cases import checkpoint_and_tokens
from made_trajectory import write_trajectory
from typer.testing import CliRunner

import saturation
from saturation.cli.commands import app
from saturation.config.files import load_config
from saturation.errors import ConfigError, FormerVersionWarning, MeasureError, SaturationError
from saturation.experiment import ExperimentConfig, run_experiment
from saturation.measures.heads.measure import HEADS
from saturation.models.base import config_of_parameters
from saturation.runs.activations import observe_checkpoint
from saturation.runs.settings import ActivationSettings, read_settings
from saturation.text.beside import BESIDE, vocabulary_beside
from saturation.text.corpus import read_corpus
from saturation.text.sequences import TokenBatch, read_corpus_tokens, read_tokens
from saturation.text.vocabulary import open_to_pretrain, open_vocabulary
from saturation.training import pretrain
from saturation.training.config import PretrainConfig

TEXT = "the value of the expression is the value of the other expression\n" * 40
REFUSED = (
    r"was read as bytes, and the model in .* has a vocabulary of 512 pieces.*--vocabulary FILE"
)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """A small sentencepiece model, whose T5 has more than 400 rows."""
    library = pytest.importorskip("sentencepiece", reason="needs the extra `text`")
    path = tmp_path_factory.mktemp("pieces")
    (path / "text.txt").write_text(read_corpus().text[:20_000], encoding="utf-8")
    library.SentencePieceTrainer.train(
        input=str(path / "text.txt"),
        model_prefix=str(path / "made"),
        vocab_size=310,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return path / "made.model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A tokenizer.json of words that adds </s>, cuts at 4 tokens and fills up to 9."""
    library = pytest.importorskip("tokenizers", reason="needs the extra `text`")
    words = {word: 3 + number for number, word in enumerate(sorted(set(TEXT.split())))}
    known = {"<pad>": 0, "</s>": 1, "<unk>": 2, **words, "<extra_id_0>": 90}
    made = library.Tokenizer(library.models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.post_processor = library.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=9)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def trajectory(tmp_path) -> Path:
    """Of a model of 512 pieces."""
    return write_trajectory(tmp_path / "t", (0, 10), vocab=512)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def measured(trajectory: Path, out: Path, *more: str) -> None:
    """Raise what the command raises."""
    given = ("--measures", "heads", "--out", str(out), "--sequences", "2", "--length", "8")
    error = CliRunner().invoke(app, ["measure", str(trajectory), *given, *more]).exception
    assert error is not None
    raise error


def described(trajectory: Path, tokens: Path):
    """What `run.json` says of tokens for which no vocabulary was asked."""
    opened = saturation.open_trajectory(trajectory)
    given = {"trajectory": opened, "tokens": str(tokens), "sequences": 2, "length": 8}
    settings = read_settings(["heads"], **given)
    assert settings is not None
    settings.refuse_model(config_of_parameters(opened[0].parameters), opened.path)
    return settings.fingerprint()["tokens"]


def beside(trajectory: Any) -> str | None:
    return vocabulary_beside(trajectory[trajectory.steps[0]].path, trajectory.path)


@pytest.mark.parametrize("vocabulary", [(), ("--vocabulary", "bytes")])
def test_bytes_of_a_text_are_refused_by_a_model_of_pieces(trajectory, text, tmp_path, vocabulary):
    with pytest.raises(MeasureError, match=REFUSED):
        measured(trajectory, tmp_path / "run", "--tokens", str(text), *vocabulary)
    with pytest.raises(MeasureError, match=f"builtin {REFUSED}"):
        measured(trajectory, tmp_path / "run", *vocabulary)
    assert not (tmp_path / "run").exists()


def test_bytes_are_refused_from_python_and_by_experiment_files(trajectory, text, tmp_path):
    opened = saturation.open_trajectory(trajectory)
    for settings in (None, ActivationSettings()):
        with pytest.raises(MeasureError, match=REFUSED):
            saturation.measure(opened, ["heads"], str(tmp_path / "run"), activations=settings)
    with pytest.raises(MeasureError, match=REFUSED):
        observe_checkpoint(opened[0], (HEADS,), ActivationSettings())
    path = tmp_path / "experiment.yaml"
    places = {"out": str(tmp_path / "run"), "report": str(tmp_path / "figures")}
    activations = {"tokens": str(text), "sequences": 2, "length": 8}
    path.write_text(
        yaml.safe_dump(
            {
                **places,
                "trajectory": str(trajectory),
                "measures": ["heads"],
                "activations": activations,
            }
        )
    )
    with pytest.raises(MeasureError, match=REFUSED):
        run_experiment(load_config(path, None, ExperimentConfig))


def test_a_corpus_of_bytes_is_refused_beside_tokens_that_are_ids(trajectory, text, tmp_path):
    (tmp_path / "ids.jsonl").write_text("[3, 1, 4]\n")
    opened = saturation.open_trajectory(trajectory)
    given = {"trajectory": opened, "tokens": str(tmp_path / "ids.jsonl"), "length": 8}
    with pytest.raises(MeasureError, match=rf"text\.txt {REFUSED}"):
        read_settings(["scan"], corpus=str(text), **given)
    settings = read_settings(["scan"], corpus=str(text), **{**given, "trajectory": None})
    with pytest.raises(MeasureError, match=rf"text\.txt {REFUSED}"):
        saturation.measure(opened, ["scan"], str(tmp_path / "run"), activations=settings)


def test_a_vocabulary_is_asked_for_before_a_text_is_called_too_short(trajectory, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    opened = saturation.open_trajectory(trajectory)
    with pytest.raises(MeasureError, match=REFUSED):
        read_settings(["heads"], trajectory=opened, tokens=str(tmp_path / "short.txt"))


@pytest.mark.parametrize(("rows", "refused"), [(400, False), (401, True)])
def test_a_vocabulary_of_bytes_has_at_most_400_ids(text, rows, refused):
    batch = read_tokens(str(text), sequences=1, length=8)
    if refused:
        with pytest.raises(MeasureError, match="vocabulary of 401 pieces"):
            batch.refuse_unknown(rows, "made")
    else:
        batch.refuse_unknown(rows, "made")
    ids = TokenBatch(batch.encoder_input_tokens, batch.decoder_input_tokens, "made")
    ids.refuse_unknown(rows, "made")  # ids are taken as they are


@pytest.mark.parametrize("place", ["t/step_0", "t"])
def test_a_sentencepiece_model_beside_the_checkpoints_is_found(
    trajectory, pieces, text, tmp_path, place
):
    (tmp_path / place / "spiece.model").write_bytes(pieces.read_bytes())
    said = described(trajectory, text)
    assert said["vocabulary"] == open_vocabulary(str(pieces)).fingerprint
    assert said["vocabulary_file"] == str(tmp_path / place / "spiece.model")
    assert said["vocabulary_size"] == open_vocabulary(str(pieces)).size
    assert said["decoder_input"] == "shifted"


def test_the_names_are_looked_for_in_their_order_and_the_steps_folder_first(trajectory):
    opened, found = saturation.open_trajectory(trajectory), []
    assert beside(opened) is None
    for place in (trajectory, trajectory / "step_0"):
        for name in reversed(BESIDE):
            (place / name).write_bytes(b"")
            found.append(beside(saturation.open_trajectory(trajectory)))
            assert found[-1] == str(place / name)
    alone = saturation.open_trajectory(trajectory / "step_10")
    assert beside(alone) == str(trajectory / "tokenizer.json")


def test_a_vocabulary_is_found_and_read_in_a_bucket(trajectory, pieces, text):
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{trajectory}/", "/vocabularies/t/", recursive=True)
    bucket.pipe_file("/vocabularies/t/spiece.model", pieces.read_bytes())
    opened = saturation.open_trajectory("memory://vocabularies/t")
    settings = read_settings(["heads"], trajectory=opened, tokens=str(text), sequences=2, length=8)
    assert settings is not None
    assert settings.tokens.vocabulary_file == "memory://vocabularies/t/spiece.model"
    by_path = read_tokens(str(text), str(pieces), 2, 8)
    assert settings.tokens.fingerprint()["sha256"] == by_path.fingerprint()["sha256"]


def test_a_tokenizer_json_gives_its_ids_whole_and_without_marks(tokenizer, text):
    vocabulary = open_vocabulary(str(tokenizer))
    ids = vocabulary.encode("the value of the expression is the value")
    assert len(ids) == 8, "nothing is cut, filled up or added"
    assert ids.min() > 2
    assert vocabulary.decode(ids) == "the value of the expression is the value"
    assert (vocabulary.size, vocabulary.first_sentinel) == (91, 90)
    batch = read_tokens(str(text), str(tokenizer), 2, 12)
    assert (batch.vocabulary, batch.vocabulary_size) == (vocabulary.fingerprint, 91)
    assert batch.encoder_input_tokens[0, :4].tolist() == ids[:4].tolist()


def test_a_tokenizer_json_that_is_none_or_fits_no_pretraining_is_refused(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected a tokenizer\.json .* it does not load"):
        open_vocabulary(str(tmp_path / "tokenizer.json"))
    changed = tokenizer.read_text().replace("<extra_id_0>", "<other>")
    (tmp_path / "tokenizer.json").write_text(changed)
    with pytest.raises(ConfigError, match="this vocabulary has <pad> 0, </s> 1, <extra_id_0> None"):
        open_to_pretrain(str(tmp_path / "tokenizer.json"))
    assert open_to_pretrain(str(tokenizer)).size == 91


def test_text_whose_ids_are_padding_is_refused(tmp_path, tokenizer, text):
    changed = json.loads(tokenizer.read_text())
    changed["model"]["vocab"]["value"] = 0
    (tmp_path / "zero.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"gives some of the text the id 0, which is padding"):
        read_tokens(str(text), str(tmp_path / "zero.json"), 2, 8)


def small(out: Path, vocabulary: str, text: Path) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "out": str(out),
            "steps": 1,
            "batch_size": 2,
            "model": {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8},
            "text": {"files": [str(text)], "vocabulary": vocabulary},
            "objective": {"input_length": 16},
        }
    )


def test_a_pretraining_leaves_its_vocabulary_where_it_is_found(tmp_path, pieces, text):
    folder = pretrain(small(tmp_path / "made", str(pieces), text))
    opened = saturation.open_trajectory(os.fspath(folder))
    assert opened.steps == (0, 1)
    found = beside(opened)
    assert found is not None
    assert found == str(tmp_path / "made" / "sentencepiece.model")
    assert open_vocabulary(found).fingerprint == open_vocabulary(str(pieces)).fingerprint


def test_an_experiment_takes_the_vocabulary_of_its_pretraining(tmp_path, pieces, text):
    """Or refuses another before anything is trained."""
    for vocabulary in ("bytes", None):
        config = ExperimentConfig.model_validate(
            {
                "out": str(tmp_path / "run"),
                "report": str(tmp_path / "figures"),
                "pretrain": {
                    **small(tmp_path / "made", str(pieces), text).model_dump(),
                    "checkpoints": {"log_spaced": 2},
                    "model": {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8},
                },
                "measures": ["heads"],
                "activations": {
                    "tokens": str(text),
                    "vocabulary": vocabulary,
                    "sequences": 2,
                    "length": 8,
                },
            }
        )
        if vocabulary == "bytes":
            with pytest.raises(MeasureError, match=REFUSED):
                run_experiment(config)
            assert not (tmp_path / "made").exists()
        else:
            run_experiment(config)
            said = json.loads((tmp_path / "run" / "run.json").read_text())["activations"]
            assert said["tokens"]["vocabulary"].startswith("sentencepiece:")
            assert "padding" in said["masks"]


def test_ids_ask_for_no_vocabulary(trajectory, tmp_path):
    (trajectory / "spiece.model").write_bytes(b"no model, and not looked at")
    (tmp_path / "ids.jsonl").write_text('[3, 500, 4]\n{"encoder": [5, 6], "decoder": [0, 7]}\n')
    said = described(trajectory, tmp_path / "ids.jsonl")
    assert (said["vocabulary"], said["vocabulary_file"]) == ("ids", "")
    assert said["decoder_input"] == "given+shifted"


def test_a_byte_order_mark_is_no_part_of_tokens_and_text(tmp_path):
    """Windows and spreadsheets write one."""
    ids, text = tmp_path / "ids.jsonl", tmp_path / "text.txt"
    ids.write_text("[3, 1, 4]\n\n[5]\n", encoding="utf-8-sig")
    assert read_tokens(str(ids)).encoder_input_tokens.tolist() == [[3, 1, 4], [5, 0, 0]]
    text.write_text("abcdef" * 10, encoding="utf-8-sig")
    assert read_corpus_tokens(str(text), length=4).encoder_input_tokens[0].tolist() == [
        100, 101, 102, 103
    ]  # fmt: skip
    ids.write_text("[3]\n\n[x]\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match=r"ids\.jsonl, line 3: a list of token ids"):
        read_tokens(str(ids))


def test_a_run_of_a_former_version_is_read_and_not_added_to(trajectory, tmp_path):
    opened = saturation.open_trajectory(trajectory)
    table = np.array([[3, 1, 4]], np.int32)
    settings, run = ActivationSettings(TokenBatch(table, table, "made")), tmp_path / "run"
    saturation.measure(opened, ["heads"], str(run), activations=settings)
    described = json.loads((run / "run.json").read_text())
    del described["activations"]["masks"]
    for key in ("vocabulary", "vocabulary_file", "vocabulary_size", "decoder_input"):
        del described["activations"]["tokens"][key]
    del described["layout"], described["seal"]
    (run / "run.json").write_text(json.dumps(described))
    with pytest.warns(FormerVersionWarning, match="its parts are unverified"):
        assert len(saturation.load_results(str(run)))
    with pytest.raises(SaturationError, match="so that nothing can be added to it"):
        saturation.measure(opened, ["heads"], str(run), activations=settings)


def test_small_models_are_of_bytes():
    checkpoint, tokens = checkpoint_and_tokens()
    assert tokens.vocabulary == "ids"
    ActivationSettings(tokens).refuse_model(
        config_of_parameters(checkpoint.parameters), checkpoint.path
    )
