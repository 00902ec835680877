"""Small models of any structure: `tiny(n_expert=2)` is the default preset at small widths, with changes."""

from pathlib import Path
from typing import Any

import yaml

from pipeline import params

ROOT = Path(__file__).parents[2]


def tiny(**changes: Any) -> params.Model:
    """The default model at small widths, with tied embeddings and no QK-norm (which is Mixtral), with `changes`."""
    plain = yaml.safe_load((ROOT / "configs/model/moe_tiny.yaml").read_text(encoding="utf-8"))
    plain |= {"block_size": 64, "n_layer": 3, "n_embd": 32, "intermediate_size": 48, "moe_intermediate_size": 32}
    return params.Model(**(plain | {"n_expert": 4, "norm_qk": False, "tie_embeddings": True} | changes))
