"""Sharpness-aware training in JAX that perturbs only the normalization layers."""
