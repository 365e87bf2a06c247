"""The documentation names what there is: every metric, law, figure and test it points to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from saturation.growth.fit import LAWS, Fit
from saturation.measures import MEASURES as REGISTRY
from saturation.measures import words_of
from saturation.report.glossary import glossary

ROOT = Path(__file__).resolve().parents[1]
MEASURES = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def named() -> set[str]:
    return set(re.findall(r"`([^`]+)`", MEASURES))


def test_every_metric_law_and_figure_is_explained():
    figures = {figure for name in REGISTRY for figure in words_of(name).figures}
    wanted = {term.metric for term in glossary()} | set(LAWS) | figures
    assert wanted <= named()


def test_every_field_of_a_fit_is_explained():
    obvious = {"law", "a", "b", "p", "n"}
    assert {field.name for field in dataclasses.fields(Fit)} - obvious <= named()


def test_every_test_named_exists():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    tests = re.findall(r"`(test_\w+)`", MEASURES)
    assert len(tests) >= 7
    for test in tests:
        assert f"def {test}(" in code, test
    for path in re.findall(r"`(tests/\w+\.py)`", MEASURES):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_hold(page: Path):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
