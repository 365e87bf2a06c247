"""Decompositions of many small matrices, where and how each device can be trusted with them.

On the CPU, matrices are taken one by one. Batched, jaxlib 0.10 shares them out over the threads
that run the program and waits for them on one of these: where as many such calls run at once as
there are threads, all wait and none works (`ParallelBatchMap` in its lapack_kernels.cc; jaxlib 0.11
does not do so any more). One matrix is decomposed where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jax import Array


def eigenvalues(matrices: Array) -> Array:
    """Return the eigenvalues of nonsymmetric real matrices, in any order.

    Accelerators have no such solver: the matrices are sent to the host.

    Args:
      matrices: (*batch, n, n).

    Returns:
      Complex, (*batch, n); all NaN for a matrix that is not finite.
    """
    import jax
    import jax.numpy as jnp

    return jax.lax.platform_dependent(
        matrices, cpu=lambda a: _one_by_one(jnp.linalg.eigvals, a), default=eigenvalues_on_host
    )


def symmetric_eigenvalues(matrices: Array) -> Array:
    """Return the eigenvalues (*batch, n) of symmetric real matrices (*batch, n, n), ascending."""
    import jax.numpy as jnp

    return _where_batches_are_safe(jnp.linalg.eigvalsh, matrices)


def singular_values(matrices: Array) -> Array:
    """Return the singular values (*batch, min(m, n)) of matrices (*batch, m, n), descending."""
    import jax.numpy as jnp

    return _where_batches_are_safe(lambda a: jnp.linalg.svd(a, compute_uv=False), matrices)


def orthonormal_columns(matrices: Array) -> Array:
    """Return Q of the reduced QR factors of matrices (*batch, m, n), m ≥ n; differentiable."""
    import jax.numpy as jnp

    return _where_batches_are_safe(lambda a: jnp.linalg.qr(a)[0], matrices)


def eigenvalues_on_host(matrices: Array) -> Array:
    """Return what `eigenvalues` does, by NumPy on the host, from any device."""
    import jax

    dtype = np.result_type(matrices.dtype, np.complex64)
    return jax.pure_callback(
        lambda found: finite_eigenvalues(np.asarray(found, np.float64)).astype(dtype),
        jax.ShapeDtypeStruct(matrices.shape[:-1], dtype),
        matrices,
        vmap_method="expand_dims",
    )


def finite_eigenvalues(matrices: np.ndarray) -> np.ndarray:
    """Return the eigenvalues (*batch, n) by NumPy, all NaN where a matrix is not finite."""
    finite = np.isfinite(matrices).all(axis=(-2, -1))
    found = np.full(matrices.shape[:-1], complex(np.nan, np.nan))
    found[finite] = np.linalg.eigvals(matrices[finite])
    return found


def _where_batches_are_safe(solve: Callable[[Array], Any], matrices: Array) -> Array:
    import jax

    return jax.lax.platform_dependent(matrices, cpu=lambda a: _one_by_one(solve, a), default=solve)


def _one_by_one(solve: Callable[[Array], Any], matrices: Array) -> Array:
    import jax

    batch = matrices.shape[:-2]
    found = jax.lax.map(solve, matrices.reshape(-1, *matrices.shape[-2:]))
    return found.reshape(*batch, *found.shape[1:])
