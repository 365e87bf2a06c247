"""What every metric of every measure is."""

from __future__ import annotations

from saturation.measures import MEASURES, words_of
from saturation.measures.words import COMMON_TERMS, Term


def glossary() -> tuple[Term, ...]:
    """Return the terms of all measures in their order, and those that several share."""
    return (*(term for name in MEASURES for term in words_of(name).terms), *COMMON_TERMS)
