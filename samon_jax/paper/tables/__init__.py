"""The papers' tables and figures and ours, one file each, or one for several made alike.

A file has `tables()`, which returns its `Table`s, and holds what is printed in them: see
`samon_jax.paper.catalog`.
"""

from samon_jax.paper.tables import (
    batch_sizes,
    blocks,
    imagenet,
    norm_only,
    regularization,
    resnets,
    sparse,
    study,
    sweeps,
    translation,
    translation_study,
    vggs,
    vits,
)

FILES = (
    resnets,
    imagenet,
    vits,
    sparse,
    vggs,
    norm_only,
    sweeps,
    blocks,
    batch_sizes,
    regularization,
    translation,
    study,
    translation_study,
)
