"""What is asked of any model, without JAX."""

from __future__ import annotations

# What a network is compared with: its attention at τ = 0, its parameters to infinity, f(x; cθ).
LIMITS = ("attention", "parameter", "scaled")
