"""Decompositions of many matrices: NumPy's numbers, one matrix at a time on the CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.models.linalg import (
    eigenvalues,
    eigenvalues_on_host,
    orthonormal_columns,
    singular_values,
    symmetric_eigenvalues,
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def matrices(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("solve", [eigenvalues, eigenvalues_on_host])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_eigenvalues(solve, batch):
    a = matrices(*batch, 5, 5)
    found = np.asarray(jax.jit(solve)(jnp.asarray(a)))
    assert found.dtype == np.complex128
    np.testing.assert_allclose(
        np.sort_complex(found), np.sort_complex(np.linalg.eigvals(a)), atol=1e-12
    )


@pytest.mark.parametrize("solve", [eigenvalues, eigenvalues_on_host])
def test_a_matrix_that_is_not_finite_has_none(solve):
    a = matrices(2, 3, 5, 5)
    a[1, 2, 0, 0] = np.nan
    found = np.asarray(jax.jit(solve)(jnp.asarray(a)))
    assert np.isnan(found[1, 2]).all()
    assert np.isfinite(found[0]).all()


def test_symmetric_eigenvalues_and_singular_values():
    a = matrices(4, 3, 6)
    sigma = np.asarray(singular_values(jnp.asarray(a)))
    np.testing.assert_allclose(sigma, np.linalg.svd(a, compute_uv=False), atol=1e-12)
    gram = a @ np.swapaxes(a, -1, -2)
    np.testing.assert_allclose(
        symmetric_eigenvalues(jnp.asarray(gram)), np.linalg.eigvalsh(gram), atol=1e-12
    )


def test_orthonormal_columns_and_their_derivative():
    a = jnp.asarray(matrices(3, 5, 2))
    q = np.asarray(orthonormal_columns(a))
    np.testing.assert_allclose(
        np.swapaxes(q, -1, -2) @ q, np.broadcast_to(np.eye(2), (3, 2, 2)), atol=1e-12
    )
    np.testing.assert_allclose(q @ (np.swapaxes(q, -1, -2) @ a), a, atol=1e-12)
    weight = jnp.asarray(matrices(3, 5, 2)[::-1].copy())
    value = lambda a: (weight * orthonormal_columns(a)).sum()
    slope, direction = jax.grad(value)(a), jnp.asarray(matrices(3, 5, 2)[:, ::-1].copy())
    step = 1e-6
    difference = (value(a + step * direction) - value(a - step * direction)) / (2 * step)
    np.testing.assert_allclose((slope * direction).sum(), difference, rtol=1e-7)
