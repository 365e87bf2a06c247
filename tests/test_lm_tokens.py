"""Tokens for models of one stack: ids, a tokenizer.json with its special tokens, padding."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lm_families import FAMILIES

from saturation.errors import ConfigError, MeasureError
from saturation.plots.tokens_text import say_tokens
from saturation.runs.settings import read_settings
from saturation.text.sequences import read_tokens
from saturation.trajectory.trajectory import open_trajectory

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "slept")


def tokenizer(path, template=""):
    """Write a tokenizer.json of a few words, with the special tokens of a template."""
    library = pytest.importorskip("tokenizers", reason="needs the extra `text`")
    special = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
    known = {word: number for number, word in enumerate((*special, *WORDS))}
    made = library.Tokenizer(library.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.add_special_tokens(list(special))
    if template:
        named = [(name, known[name]) for name in special if name in template]
        made.post_processor = library.processors.TemplateProcessing(
            single=template, special_tokens=named
        )
    made.save(str(path))
    return known


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(WORDS * 30))
    return path


@pytest.mark.parametrize(
    ("template", "before", "behind"),
    [("", (), ()), ("[CLS] $A [SEP]", (1,), (2,)), ("[CLS] $A", (1,), ()), ("$A [SEP]", (), (2,))],
)
def test_each_window_has_the_special_tokens_that_the_tokenizer_adds(
    tmp_path, text, template, before, behind
):
    tokenizer(tmp_path / "tokenizer.json", template)
    batch = read_tokens(str(text), str(tmp_path / "tokenizer.json"), 4, 10, one_stack=True)
    assert batch.decoder_input_tokens is None
    assert batch.encoder_input_tokens.shape == (4, 10)
    inside = slice(len(before), 10 - len(behind))
    for row in batch.encoder_input_tokens:
        assert tuple(row[: len(before)]) == before
        assert tuple(row[10 - len(behind) :]) == behind
        assert (np.diff(row[inside]) % len(WORDS) == 1).all()  # a window of the text as it is
    assert batch.mask_token == 3
    said = batch.fingerprint()
    assert said["special_tokens"] == [list(before), list(behind)]
    assert said["length"] == 10
    assert not {"encoder_length", "decoder_length", "decoder_input"} & said.keys()


def test_ids_are_padded_where_a_line_ends_and_where_it_says_so(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('[5, 0, 7]\n{"tokens": [-1, -1, 4, 2, 0]}\n')
    batch = read_tokens(str(path), one_stack=True)
    assert batch.encoder_input_tokens.tolist() == [[5, 0, 7, -1, -1], [-1, -1, 4, 2, 0]]
    [(tokens, counted)] = batch.texts()
    assert tokens.min() == 0
    np.testing.assert_array_equal(counted, batch.encoder_input_tokens >= 0)
    [table] = next(batch.batches(8, multiple=4))
    assert table.shape == (4, 5)
    assert (table[2:] == -1).all()  # rows that are no sequences
    assert read_tokens(str(path), length=2, one_stack=True).encoder_input_tokens.shape == (2, 2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[-1, -1]", "the ids are all -1"),
        ("[-2, 1]", "whole numbers from 0, and -1 for padding"),
        ('{"encoder": [1], "decoder": [2]}', r'or \{"tokens": \[...\]\}; found'),
        ('["a"]', "a list of token ids"),
    ],
)
def test_lines_that_hold_no_ids_are_refused(tmp_path, line, says):
    path = tmp_path / "ids.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=says):
        read_tokens(str(path), one_stack=True)


def test_the_tokenizer_beside_the_checkpoint_is_the_default(tmp_path, text):
    family = FAMILIES["bert"]
    path = family.write(tmp_path / "run" / "step_1", family.arrays())
    tokenizer(path / "tokenizer.json", "[CLS] $A [SEP]")
    trajectory = open_trajectory(tmp_path / "run")
    settings = read_settings(
        ["heads"], trajectory=trajectory, tokens=str(text), sequences=3, length=8
    )
    assert settings is not None
    settings.refuse_trajectory(trajectory)
    recorded = json.loads(json.dumps(settings.fingerprint()))
    assert recorded["tokens"]["vocabulary_file"] == str(path / "tokenizer.json")
    assert (
        recorded["masks"] == "padding, on either side; where the model is causal, later positions"
    )
    said = say_tokens(recorded)
    assert "3 sequences of 8 tokens" in said
    assert "; the ids 1 before each; the ids 2 behind each; masked: padding" in said
    assert "encoder" not in said
    assert "decoder" not in said


def test_tokens_for_two_stacks_are_refused_by_a_model_of_one(tmp_path):
    family = FAMILIES["gpt2"]
    family.write(tmp_path / "run" / "step_1", family.arrays())
    ids = tmp_path / "ids.jsonl"
    ids.write_text("[1, 2, 3]")
    settings = read_settings(["heads"], tokens=str(ids))  # with no trajectory: a T5's
    assert settings is not None
    with pytest.raises(MeasureError, match="was read for a model with an encoder and a decoder"):
        settings.refuse_trajectory(open_trajectory(tmp_path / "run"))


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    family = FAMILIES["gpt2"]
    family.write(tmp_path / "run" / "step_1", family.arrays())
    ids = tmp_path / "ids.jsonl"
    ids.write_text("[1, 2, 23]")
    trajectory = open_trajectory(tmp_path / "run")
    settings = read_settings(["heads"], trajectory=trajectory, tokens=str(ids))
    assert settings is not None
    with pytest.raises(MeasureError, match="has token 23, and the model in "):
        settings.refuse_trajectory(trajectory)
