"""What a model is pretrained to do: T5's span corruption, which the text room has."""

from __future__ import annotations

from saturation.text.span_corruption import (
    SpanLengths,
    lengths_of_text,
    lengths_to_fill,
    random_segmentation,
    random_spans_mask,
    shift_right,
    spans_to_sentinels,
)

__all__ = [
    "SpanLengths",
    "lengths_of_text",
    "lengths_to_fill",
    "random_segmentation",
    "random_spans_mask",
    "shift_right",
    "spans_to_sentinels",
]
