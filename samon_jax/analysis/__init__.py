"""Measurements on trained models: sharpness, robustness, feature rank, weights, loss surfaces.

Every measurement is a plain function of a model `apply(params, inputs) -> logits` in evaluation
mode; `report` runs all of them on work directories. Where `apply` needs further arrays, such as
running statistics, bind them with `jax.tree_util.Partial`: arrays bound by it are arguments of the
compiled programs, so models of one architecture share them.
"""
