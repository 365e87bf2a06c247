"""Common and distinct tokens: the paper's language, closed forms, and a loop over pairs of rows."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from saturation.errors import ConfigError
from saturation.measures.scan import cooccurrence
from saturation.measures.scan.cooccurrence import (
    COMMON,
    DISTINCT,
    UNCLASSIFIED,
    Pairs,
    key_kinds,
    lift,
)
from saturation.studies.scan_snap.data import Language, draw
from saturation.text.sequences import TokenBatch, read_corpus_tokens, read_tokens


def texts(rows):
    tokens = np.array(rows, np.int32)
    return [(tokens, np.ones(tokens.shape, bool))]


def by_brute_force(rows, vocab):
    """lift(l): matches of the next token over all pairs of places in two different rows."""
    pairs = [
        [(row[i], row[j]) for i, j in itertools.combinations(range(len(row)), 2)] for row in rows
    ]
    classes = np.bincount([n for row in pairs for _, n in row], minlength=vocab)
    share = classes / classes.sum()

    def ratio(chosen):
        hit = total = 0
        for a, b in itertools.permutations(range(len(rows)), 2):
            for (l1, n1), (l2, n2) in itertools.product(pairs[a], pairs[b]):
                if chosen(l1) and chosen(l2):
                    total += 1
                    hit += (n1 == n2) / share[n1]
        return hit / total if total else np.nan

    base = ratio(lambda _: True)
    return np.array([ratio(lambda key, only=t: key == only) / base for t in range(vocab)])


@pytest.mark.parametrize("chunk", [cooccurrence.CHUNK, 1])
def test_lift_agrees_with_a_loop_over_pairs_of_rows(monkeypatch, chunk):
    monkeypatch.setattr(cooccurrence, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 5, (4, 7))
    rows[0, 0] = 6  # in one row alone
    found = lift(cooccurrence._pairs_of_texts(texts(rows)), 8)
    np.testing.assert_allclose(found, by_brute_force(rows.tolist(), 8), rtol=1e-12)
    assert np.isnan(found[6:]).all()
    assert np.ptp(found[:5]) > 0.1


@pytest.mark.parametrize("last_tokens", [1, 5])
def test_the_papers_language_is_told_apart(last_tokens):
    """Its common tokens have a lift of 1, its distinct ones of K, the number of classes."""
    language = Language(last_tokens)
    drawn = draw(jax.random.key(0), language, 400, 127)
    counts = np.asarray(drawn.counts, int)
    rows = np.repeat(np.arange(400), counts.sum(axis=1))
    keys = np.repeat(np.asarray(drawn.tokens).ravel(), counts.ravel())
    found = lift([Pairs(rows, keys, np.asarray(drawn.following)[rows])], language.size)
    own = slice(language.common, language.common + language.classes * language.distinct)
    np.testing.assert_allclose(found[: language.common], 1.0, atol=0.01)
    np.testing.assert_allclose(found[own], language.classes, rtol=0.5)
    assert (found[own] >= cooccurrence.DISTINCT_LIFT).all()


def test_the_lift_is_the_inverse_share_of_the_classes_a_token_occurs_before():
    """Tokens 0, 1 and 2 occur before 1, 2 and all of 4 equally frequent next tokens."""
    contexts = [(0, 1, 2), (3, 1, 2), (3, 3, 2), (3, 3, 2)]
    of_class = np.arange(400) % 4
    keys = np.array(contexts)[of_class].ravel()
    found = lift([Pairs(np.repeat(np.arange(400), 3), keys, np.repeat(4 + of_class, 3))], 8)
    np.testing.assert_allclose(found[:3], [4, 2, 1], rtol=0.02)


def test_a_rare_token_that_says_nothing_is_common_on_average():
    """Of tokens drawn at random, those of 2 to 5 rows of 60 have a mean lift of 1 all the same."""
    rng = np.random.default_rng(1)
    share = 1.0 / np.arange(1, 301)
    rows = rng.choice(300, (60, 40), p=share / share.sum())
    found = lift(cooccurrence._pairs_of_texts(texts(rows)), 300)
    seen = np.array([(rows[:, :-1] == token).any(axis=1).sum() for token in range(300)])
    rare = (seen >= 2) & (seen <= 5)
    assert rare.sum() > 50
    assert np.mean(found[rare]) == pytest.approx(1, abs=4 * np.std(found[rare]) / rare.sum() ** 0.5)
    assert np.mean(found[rare]) == pytest.approx(1, abs=0.1)


def test_kinds_and_padding():
    """Rows of two topics: 1 stands in all of them, 2 and 3 in one topic each, 4 in one row."""
    topics = [[1, 2, 5, 6, 5, 6], [1, 3, 7, 8, 7, 8]]
    rows = np.array([topics[row % 2] for row in range(12)])
    rows[0, 1] = 4
    kinds = key_kinds(texts(rows), 10)
    assert kinds.dtype == np.int8
    assert kinds[[1, 2, 3, 4, 9]].tolist() == [
        COMMON,
        DISTINCT,
        DISTINCT,
        UNCLASSIFIED,
        UNCLASSIFIED,
    ]
    padded = np.pad(rows, ((0, 3), (0, 4)))
    np.testing.assert_array_equal(key_kinds([(padded, padded > 0)], 10), kinds)


def test_nothing_to_count_leaves_all_unclassified():
    assert (key_kinds(texts([[1]]), 4) == UNCLASSIFIED).all()
    assert (key_kinds(texts([[1, 2, 1, 2]]), 4) == UNCLASSIFIED).all(), "one row"
    assert (key_kinds([], 4) == UNCLASSIFIED).all()


def test_a_text_that_both_stacks_read_is_there_once_behind_its_start():
    encoder = np.array([[3, 4, 5], [6, 7, 8]], np.int32)
    [(tokens, valid)] = TokenBatch(encoder, np.array([[0, 3, 4], [0, 6, 7]], np.int32), "x").texts()
    assert tokens.tolist() == [[0, 3, 4, 5], [0, 6, 7, 8]]
    assert valid.all()
    ragged = TokenBatch(np.array([[3, 0]], np.int32), np.array([[0, 9, 0]], np.int32), "x").texts()
    assert [valid.tolist() for _, valid in ragged] == [[[True, False]], [[True, True, False]]]


def test_a_corpus_is_all_of_a_text_in_windows(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcdefghij" * 30)
    corpus = read_corpus_tokens(str(file), length=1000)
    assert corpus.encoder_input_tokens.shape == (2, 128)
    assert read_corpus_tokens(str(file), length=20).encoder_input_tokens.shape == (15, 20)
    with pytest.raises(ConfigError, match="has 300 tokens, and 1 sequences of 400 need 400"):
        read_tokens(str(file), sequences=None, length=400)
