"""`spectrum` of decoders and encoders: the eigenvalues of what each head adds, taken whole."""

from __future__ import annotations

import numpy as np
import pytest
from lm_families import FAMILIES, D, H, L

import saturation
from saturation.models.lm_config import LMConfig
from saturation.results.table import load_vectors
from saturation.trajectory.trajectory import open_trajectory

MAIN = [name for name in FAMILIES if "-" not in name]
HEAD = D // H


def whole(config, checkpoint, layer, head, scaled):
    """The d × d matrix H of a head, in float64."""
    path = f"layers_{layer}/attention"
    value = checkpoint.read(f"{path}/value/kernel").astype(np.float64)
    out = checkpoint.read(f"{path}/out/kernel").astype(np.float64)
    group = head // (config.num_heads // config.num_key_value_heads)
    found = value[:, group * HEAD : (group + 1) * HEAD] @ out[head * HEAD : (head + 1) * HEAD]
    if config.norm_placement == "before":
        if scaled and config.norm_scale:
            found = (
                checkpoint.read(f"layers_{layer}/pre_attention_layer_norm/scale")[:, None] * found
            )
        if config.norm == "layer_norm":
            found = (np.eye(D) - 1 / D) @ found
    return found


@pytest.mark.parametrize("name", [*MAIN, "olmo2-grouped"])
def test_eigenvalues_of_each_head_are_those_of_the_whole_matrix(tmp_path, name):
    family = FAMILIES[name]
    for step in (0, 5):
        family.write(tmp_path / "run" / f"step_{step}", family.arrays(step))
    trajectory = open_trajectory(tmp_path / "run")
    saturation.measure(trajectory, ["spectrum"], str(tmp_path / "out"))
    table = saturation.load_results(str(tmp_path / "out"))
    vectors = load_vectors(str(tmp_path / "out"), "spectrum")
    config = LMConfig.from_checkpoint(trajectory[5])
    by_number = table.set_index(["step", "scope", "metric"]).value
    for layer in range(L):
        for head in range(H):
            scope = f"layers_{layer}/attention/head_{head}"
            for suffix, scaled in (("", True), ("_unscaled", False)):
                if name.startswith("olmo2") and scaled:
                    assert (5, scope, "spectral_radius") not in by_number.index
                    continue
                matrix = whole(config, trajectory[5], layer, head, scaled)
                expected = np.linalg.eigvals(matrix)
                radius = np.abs(expected).max()
                found = by_number[5, scope, f"spectral_radius{suffix}"]
                assert found == pytest.approx(radius, rel=1e-9)
                skew = np.linalg.norm(matrix - matrix.T) / (2 * np.linalg.norm(matrix))
                assert by_number[5, scope, f"asymmetry{suffix}"] == pytest.approx(skew, rel=1e-7)
    scopes = set(table.scope)
    has_scale = config.norm_placement == "before" and config.norm_scale
    assert ("layers_0/attention" in scopes) == has_scale
    assert len(vectors) == 2 * L * H
