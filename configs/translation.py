"""German to English on Multi30k: a small Transformer, as in the study of docs/translation.md.

The paper's own experiment is Table 16, IWSLT'14: `configs/translation.py:iwslt`. To try things out
without files there is a language whose translation is the sentence backwards:
`configs/translation.py:reversal`.

Data are found in --config.data.dir, TFDS_DATA_DIR or TFDS's default, in the folder multi30k.

    python main.py --config=configs/translation.py --workdir=runs/multi30k
    python main.py --mode=eval --workdir=runs/multi30k --checkpoint=best --split=test
    python main.py --mode=translate --workdir=runs/multi30k --input=german.txt
"""

from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.paper.tables import translation as table16
from samon_jax.paper.tables import translation_study
from samon_jax.training.config import default_config


def get_config(options: str = "") -> ConfigDict:
    """SAM-ON on Multi30k, on sentences backwards, or on IWSLT'14 as in Table 16.

    Args:
      options: "", "adamw" (not perturbed), "reversal" or "iwslt".
    """
    config = default_config()
    config.sam.variant = "sam"
    config.sam.mask = "only_norm"
    if options in ("", "adamw"):
        config.update_from_flattened_dict(translation_study.FIELDS)
        config.sam.rho = 0.15  # the study's best
        config.translation.beam = 5
        if options == "adamw":
            config.sam.variant = "none"
    elif options == "reversal":
        config.update_from_flattened_dict(translation_study.FIELDS)
        config.data.name = "reversal"
        config.epochs = 12
        config.schedule.warmup_epochs = 2.0
        config.sam.rho = 0.15
        config.translation.vocabulary = 25
        config.translation.batch_tokens = 1024
        config.translation.dropout = 0.1
        config.translation.shapes = 1  # one program to compile
        config.checkpoint.every_epochs = 12
    elif options == "iwslt":
        config.update_from_flattened_dict(table16.FIELDS)
        config.sam.rho = 0.1
    else:
        raise UserError(
            f"configs/translation.py:{options} does not exist; choose '', 'adamw', 'reversal' or "
            "'iwslt'"
        )
    return config
