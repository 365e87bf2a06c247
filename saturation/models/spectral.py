"""The parameters of an attention that is given its eigenvalues, as a Flax module."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saturation.attention import at_least_float32
from saturation.models.config import T5Config
from saturation.models.eigenvalues import STARTS, spectral_kernels
from saturation.models.linalg import orthonormal_columns


class SpectralKernels(nn.Module):
    """The value and output kernels of V Λ Vᵀ, head by head (see `models.eigenvalues`).

    Attributes:
      config: sizes.
      kind: sharpen, smooth or free; the module goes by that name, so that a checkpoint tells.
    """

    config: T5Config
    kind: str

    @nn.compact
    def __call__(
        self, dtype: jnp.dtype
    ) -> tuple[Float[Array, "embed joined"], Float[Array, "joined embed"]]:
        """Return both in `dtype`; orthonormal columns are computed in at least float32."""
        heads, head_dim = self.config.num_heads, self.config.head_dim

        def declared(name: str, init, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
            boxed = nn.with_logical_partitioning(init, axes)
            parameter = jnp.asarray(self.param(name, boxed, shape, jnp.float32))
            return parameter.astype(at_least_float32(parameter.dtype))

        low, high = STARTS[self.kind]
        shape, axes = (self.config.emb_dim, heads * head_dim), ("embed", "joined_kv")
        basis = declared("basis", nn.initializers.normal(1.0), shape, axes)
        psi = declared("psi", _uniform(low, high), (heads, head_dim), ("heads", "kv"))
        value, out = spectral_kernels(self.kind, basis, psi, orthonormal_columns)
        return value.astype(dtype), out.astype(dtype)


def _uniform(low: float, high: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, low, high)
