"""What activations were taken on stands in the summary, on the page and under figures."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from report_measures import table
from report_tables import rows

from saturation.report import write_summary
from saturation.report.figures import PLANS, build_figures
from saturation.report.page import build_page
from saturation.report.tokens_text import say_tokens

SETTINGS = {
    "tokens": {
        "source": "text.txt",
        "vocabulary": "sentencepiece:0123456789abcdef",
        "vocabulary_file": "gs://place/spiece.model",
        "vocabulary_size": 32100,
        "decoder_input": "same",
        "sequences": 32,
        "encoder_length": 83,
        "decoder_length": 83,
        "sha256": "ff",
    },
    "masks": "the encoder's padding",
    "scale": 1000.0,
}
SAID = (
    "Taken on 32 sequences of 83 tokens of text.txt; vocabulary: sentencepiece, 32,100 ids, "
    "gs://place/spiece.model (sha256 0123456789ab); decoder's input: the encoder's tokens "
    "unshifted; masked: the encoder's padding."
)
ON_TOKENS = ("saturation", "heads", "homogeneity", "smoothing", "scan")


@pytest.fixture(scope="module")
def run():
    made = table(ON_TOKENS, (0, 10, 100))
    made.attrs["activations"] = SETTINGS
    return made


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_sentence_says_source_vocabulary_decoder_and_masks():
    assert say_tokens(SETTINGS) == SAID
    assert say_tokens(None) == ""
    ids = {**SETTINGS["tokens"], "vocabulary": "ids", "decoder_input": "given+shifted"}
    said = say_tokens({**SETTINGS, "tokens": ids})
    assert (
        "vocabulary: as the ids were given; decoder's input: given with the tokens or the" in said
    )


def test_of_a_former_version_it_says_what_was_not_recorded():
    old = {key: SETTINGS["tokens"][key] for key in ("source", "sequences", "encoder_length")}
    said = say_tokens({"tokens": {**old, "decoder_length": 10}, "scale": 1000.0})
    assert said == (
        "Taken on 32 sequences of 83 (decoder: 10) tokens of text.txt; the version that measured "
        "recorded no vocabulary, decoder input or masks."
    )


def test_it_stands_in_the_summary(run, tmp_path):
    text = write_summary({"run": run}, {}, tmp_path / "summary.txt").read_text()
    assert f"Activations. {SAID}" in one_line(text)


def test_it_stands_under_every_figure_of_activations(run):
    figures = build_figures({"run": run, "other": table(("heads",), (0, 10))}, {})
    assert set(figures) >= {"saturation", "heads", "homogeneity", "smoothing", "scan"}
    for name, figure in figures.items():
        assert PLANS[name].optional
        first, *others = figure.subfigs
        foot = first.subfigs[-1]
        assert [one_line(text.get_text()) for text in foot.texts] == [SAID], name
        assert not any(strip.subfigs for strip in others), "nothing is said of a run without any"


def test_it_stands_on_the_page_under_every_section_of_activations(run):
    page = build_page({"run": run}, {}, {"run": {"activations": SETTINGS}})
    said = SAID.replace("'", "&#x27;")
    assert f"<dt>Activations</dt><dd>{said}</dd>" in page
    assert page.count(f'<p class="note">{said}</p>') == len(ON_TOKENS)


def test_the_summary_gives_the_worst_layer_beside_the_mean(tmp_path):
    scopes = {"encoder/layers_0": (0.2, 0.9), "decoder/final": (0.4, 0.5), "encoder/final": (0, 1)}
    made = pd.concat(
        rows((0, 10), "saturation", "cosine_parameter_limit", scope, values)
        for scope, values in scopes.items()
    )
    text = write_summary({"run": made}, {}, tmp_path / "summary.txt").read_text()
    mean, worst = (
        re.findall(rf"^{name} +(\S+) +(\S+)$", text, re.M)[0]
        for name in ("parameter limit.*?", "  worst: decoder/final")
    )
    assert (mean, worst) == (("0.200", "0.800"), ("0.400", "0.500"))
