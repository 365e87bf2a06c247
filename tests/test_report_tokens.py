"""What activations were taken on stands in the summary, on the page and under figures."""

from __future__ import annotations

import pytest
from report_measures import table

from saturation.measures import MEASURES, needs_tokens, pictures_of
from saturation.plots.series import RunTable
from saturation.plots.tokens_text import say_tokens
from saturation.report import write_summary
from saturation.report.figures import build_figures
from saturation.report.page import build_page

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
ON_TOKENS = tuple(name for name in MEASURES if needs_tokens([name]))


@pytest.fixture(scope="module")
def run():
    made = table(MEASURES, (0, 10, 100))
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
    assert one_line(text).count(f"Activations. {SAID}") == 1


def test_a_picture_says_whether_it_shows_what_was_computed_on_tokens(run):
    for name in MEASURES:
        for picture in pictures_of(name, RunTable("run", run)):
            assert picture.on_tokens == (name in ON_TOKENS), picture.name


def test_it_stands_under_every_figure_of_activations():
    made = table(("heads", "scan"), (0, 10))
    made.attrs["activations"] = SETTINGS
    figures = build_figures({"run": made, "other": table(("heads", "norms"), (0, 10))}, {})
    assert set(figures) == {"growth", "layers", "scopes", "heads", "scan", "snap"}
    for name in ("heads", "scan", "snap"):
        first, *others = figures[name].subfigs
        foot = first.subfigs[-1]
        assert [one_line(text.get_text()) for text in foot.texts] == [SAID], name
        for strip in others:
            assert not any(part.texts for part in strip.subfigs), "nothing is said of another run"
    for strip in figures["growth"].subfigs:
        assert not any(part.texts for part in strip.subfigs)


def test_it_stands_on_the_page_under_every_section_of_activations(run):
    page = build_page({"run": run}, {}, {"run": {"activations": SETTINGS}})
    said = SAID.replace("'", "&#39;")
    assert f"<dt>Activations</dt><dd>{said}</dd>" in page
    shown = [p for name in ON_TOKENS for p in pictures_of(name, RunTable("run", run))]
    assert len(shown) > len(ON_TOKENS), "scan has two"
    assert page.replace("&#x27;", "&#39;").count(f"{said}</p>") == len(shown)
