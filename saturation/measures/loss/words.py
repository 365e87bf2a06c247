"""What is said of the loss."""

from __future__ import annotations

from collections.abc import Sequence

from saturation.measures.words import Term, Words
from saturation.plots.series import RunTable

PAPERS = "Radford et al. 2019; Devlin et al. 2019; Raffel et al. 2020"
TERMS = (
    Term(
        "loss",
        "mean over predicted tokens of −ln p(token), nats",
        "What pretraining lowers, on these tokens.",
        PAPERS,
    ),
    Term("perplexity", "e^loss", "Among how many tokens the model is left to choose.", PAPERS),
)


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read loss.png."""
    if not run.matching("loss", "total"):
        return ()
    return (
        "In loss.png the loss falls steeply at first and slowly afterwards; where another measure "
        "turns, see whether the loss turns with it. Its level depends on the text and on what is "
        "predicted (run.json, `loss`): compare runs on the same tokens alone.",
    )


WORDS = Words(terms=TERMS, figures={"loss": "the loss (measure loss)"}, guide=guide)
