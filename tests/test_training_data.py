from __future__ import annotations

import collections
import hashlib
import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saturation.errors import ConfigError
from saturation.text import span_corruption
from saturation.text import vocabulary as tokens
from saturation.text.corpus import read_corpus
from saturation.training import data

BYTES = tokens.ByteVocabulary()


# --- vocabularies -------------------------------------------------------------------------------


@given(st.text())
def test_bytes_go_to_ids_three_higher_and_back(text):
    ids = BYTES.encode(text)
    assert ids.tolist() == [byte + 3 for byte in text.encode()]
    assert BYTES.decode(ids) == text


def test_byte_vocabulary_is_byt5s():
    assert BYTES.size == 259
    assert (
        BYTES.first_sentinel == 258
    )  # google-research/byt5: no extra ids, the last byte ids serve
    assert tokens.embedding_rows(BYTES) == 384


def test_special_ids_leave_no_trace_in_text():
    ids = np.array([0, 258, *BYTES.encode("ab"), 257, 1, 2], dtype=np.int32)
    assert BYTES.decode(ids) == "ab"


def test_a_sentencepiece_model_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r'pip install "saturation-jax\[text\]"'):
        tokens.open_vocabulary(str(tmp_path / "some.model"))


def _sentencepiece_model(path, **settings):
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="writing a sentencepiece model needs the extra `text`"
    )
    corpus = path.with_suffix(".txt")
    corpus.write_text(read_corpus().text[:20_000], encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path), vocab_size=300, minloglevel=2, **settings
    )
    return f"{path}.model"


def test_a_sentencepiece_model_gets_t5s_sentinels(tmp_path):
    model = _sentencepiece_model(tmp_path / "t5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    vocabulary = tokens.open_vocabulary(model)
    assert vocabulary.size == 400
    assert vocabulary.first_sentinel == 399
    assert tokens.embedding_rows(vocabulary) == 512
    ids = vocabulary.encode("the value of the expression")
    assert vocabulary.decode(np.append(ids, np.int32([399, 1, 0]))) == "the value of the expression"
    assert vocabulary.fingerprint.startswith("sentencepiece:")


def test_a_sentencepiece_model_with_other_special_ids_is_refused(tmp_path):
    model = _sentencepiece_model(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has pad, eos, unk = 0, 1, 2; this one has -1, 2, 0"):
        tokens.open_vocabulary(model)


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="reading one needs the extra `text`")
    (tmp_path / "x.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="expected a sentencepiece model"):
        tokens.open_vocabulary(str(tmp_path / "x.model"))
    with pytest.raises(ConfigError, match="there is no such vocabulary file"):
        tokens.open_vocabulary(str(tmp_path / "absent.model"))


# --- span corruption ----------------------------------------------------------------------------


@given(st.integers(3, 700), st.floats(0.05, 0.5), st.floats(2.0, 20.0))
def test_the_text_is_the_longest_whose_corruption_fits(inputs, density, mean):
    try:
        lengths = span_corruption.lengths_to_fill(inputs, density, mean)
    except ConfigError:
        return
    assert lengths.inputs <= inputs
    assert span_corruption.lengths_of_text(lengths.text + 1, density, mean).inputs > inputs
    assert lengths.text == lengths.inputs - 1 - lengths.spans + lengths.noise


def test_lengths_are_t5s_own():
    lengths = span_corruption.lengths_to_fill(512, 0.15, 3.0)
    assert (lengths.text, lengths.targets) == (568, 114)  # T5's objectives/span.gin


def test_more_spans_than_sentinels_are_refused():
    with pytest.raises(ConfigError, match=r"make 1\d\d masked spans .* at most 100"):
        span_corruption.lengths_to_fill(2100, 0.15, 3.0)
    with pytest.raises(ConfigError, match="an input_length of at least 3, got 2"):
        span_corruption.lengths_to_fill(2, 0.15, 3.0)


def test_every_segmentation_is_equally_likely():
    rng = np.random.default_rng(0)
    draws = span_corruption.random_segmentation(rng, 30_000, items=6, segments=3)
    counts = collections.Counter(map(tuple, draws.tolist()))
    possible = {p for p in itertools.product(range(1, 7), repeat=3) if sum(p) == 6}
    assert counts.keys() == possible
    expected = 30_000 / len(possible)
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 27.9  # 99.9 % quantile of 9 degrees of freedom


@settings(max_examples=50)
@given(st.integers(10, 200), st.integers(0, 2**32))
def test_masks_have_the_density_begin_with_text_and_end_with_noise(text, seed):
    lengths = span_corruption.lengths_of_text(text, 0.15, 3.0)
    mask = span_corruption.random_spans_mask(np.random.default_rng(seed), 4, lengths)
    assert (mask.sum(axis=1) == lengths.noise).all()
    assert not mask[:, 0].any()
    assert mask[:, -1].all()
    runs = (np.diff(mask.astype(int), axis=1) == 1).sum(axis=1)
    assert (runs == lengths.spans).all()


def test_spans_are_replaced_as_in_the_papers_figure():
    text = np.array([[10, 11, 12, 13, 14, 15, 16]], dtype=np.int32)
    mask = np.array([[0, 0, 1, 1, 0, 0, 1]], dtype=bool)
    assert span_corruption.spans_to_sentinels(text, mask, 99).tolist() == [
        [10, 11, 99, 14, 15, 98, 1]
    ]
    assert span_corruption.spans_to_sentinels(text, ~mask, 99).tolist() == [[99, 12, 13, 98, 16, 1]]


def test_rows_of_unequal_length_are_refused():
    mask = np.array([[0, 1, 0], [0, 0, 0]], dtype=bool)
    mask[0, 2] = True
    with pytest.raises(ValueError, match="as many masked tokens"):
        span_corruption.spans_to_sentinels(np.zeros((2, 3), np.int32), mask, 99)


# --- batches ------------------------------------------------------------------------------------


def _batches(seed=0, inputs=64, batch=5):
    corpus = read_corpus()
    lengths = span_corruption.lengths_to_fill(inputs, 0.15, 3.0)
    return data.SpanCorruptionBatches(BYTES.encode(corpus.text), BYTES, lengths, batch, seed)


def _fill(inputs, targets):
    """The text: each sentinel of the inputs replaced by what follows it in the targets."""
    spans = {}
    for token in targets:
        if token >= 248:
            spans[token] = []
            last = token
        elif token != 1:
            spans[last].append(token)
    filled = [spans.get(token, [token]) for token in inputs if token != 1]
    return list(itertools.chain.from_iterable(filled))


def test_inputs_and_targets_together_are_the_text():
    batch = _batches()(3)
    text = read_corpus().text.encode()
    assert batch.encoder_input_tokens.shape == (5, 64)
    for inputs, targets in zip(
        batch.encoder_input_tokens.tolist(), batch.decoder_target_tokens.tolist(), strict=True
    ):
        assert inputs[-1] == targets[-1] == 1
        assert bytes(token - 3 for token in _fill(inputs, targets)) in text


def test_decoder_inputs_are_the_targets_shifted_right():
    batch = _batches()(3)
    assert (batch.decoder_input_tokens[:, 0] == 0).all()
    assert (batch.decoder_input_tokens[:, 1:] == batch.decoder_target_tokens[:, :-1]).all()


def test_a_batch_depends_on_seed_and_step_alone():
    batches = _batches()
    first = batches(7)
    for step in (0, 3, 8):
        batches(step)
    again, other_step, other_seed = batches(7), batches(8), _batches(seed=1)(7)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first.encoder_input_tokens != other_step.encoder_input_tokens).any()
    assert (first.encoder_input_tokens != other_seed.encoder_input_tokens).any()
    assert (other_step.encoder_input_tokens != other_seed.encoder_input_tokens).any()


def test_a_text_shorter_than_an_example_is_refused():
    lengths = span_corruption.lengths_to_fill(64, 0.15, 3.0)
    with pytest.raises(ConfigError, match="the text has 5 tokens and one example takes 70"):
        data.SpanCorruptionBatches(BYTES.encode("short"), BYTES, lengths, 2, 0)


def test_text_of_files_is_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first é", encoding="utf-8")
    corpus = read_corpus([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])
    assert corpus.text == "first é\n\nsecond"
    assert corpus.sha256 == hashlib.sha256("first é\n\nsecond".encode()).hexdigest()


def test_the_default_text_is_pythons_documentation():
    corpus = read_corpus()
    assert corpus.sources == ("pydoc_data.topics",)
    assert len(corpus.text) > 300_000


def test_a_pattern_without_a_file_and_a_file_that_is_no_text_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*nothing\*': there is no such text file"):
        read_corpus([str(tmp_path / "nothing*")])
    (tmp_path / "x.txt").write_bytes(b"abc\xff")
    with pytest.raises(ConfigError, match=r"x\.txt: expected UTF-8 text, .* at position 3"):
        read_corpus([str(tmp_path / "x.txt")])
