"""Decoders and encoders as transformers itself computes them, in float64 throughout."""

from __future__ import annotations

import numpy as np
import pytest
from test_models_lm import difference, forward
from test_transformers_parity import interpreters, written_by
from transformers_lms import KINDS

from saturation.checkpoints import open_checkpoint


@pytest.fixture(scope="module", params=interpreters(), ids=lambda path: str(path).split("/bin")[0])
def by_transformers(request, tmp_path_factory):
    return written_by(request.param, "transformers_lms.py", tmp_path_factory.mktemp("lms"))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_states_and_attention_are_those_of_transformers(by_transformers, kind):
    saved = np.load(by_transformers / f"{kind}.npz")
    checkpoint = open_checkpoint(by_transformers / kind)
    for dtype, most in ((np.float64, 1e-9), (np.float32, 1e-4)):
        config, found = forward(checkpoint, saved["tokens"], saved["mask"], dtype)
        states = ["embedding", *(f"layers_{i}" for i in range(config.num_layers))]
        if "final" in found:
            states[-1] = "final"
        pairs = {f"hidden_{i}": state for i, state in enumerate(states)} | {"logits": "logits"}
        pairs |= {f"attention_{i}": f"attention_{i}" for i in range(config.num_layers)}
        assert set(pairs) == set(saved.files) - {"tokens", "mask"}
        for theirs, ours in pairs.items():
            assert difference(found[ours], saved[theirs], saved["mask"]) < most, (theirs, dtype)
