"""The parameters of a run: Pydantic models of params.yaml with every rule that can be checked without a device.

    params = load("params.yaml")     # a Params, or a UserError that names each wrong path

Every key must be there and no other may be: what a run did stands whole in params.yaml, so this file can change
without changing a result, and a misspelt key is refused with the nearest known name. How a run is *watched*
(W&B, progress, log level) never stands here: watching a run must not make DVC run it again.
"""

from pipeline.params.clean import Clean, NearDuplicates, Quality
from pipeline.params.download import Bundled, Download, HuggingFace, Local, Url, Wandb
from pipeline.params.evaluate import Evaluate
from pipeline.params.export import Export
from pipeline.params.finetune import Finetune, training
from pipeline.params.instruct import Instruct
from pipeline.params.model import Model, RopeScaling
from pipeline.params.reading import filled, leaves, load, read, validate
from pipeline.params.rules import Params
from pipeline.params.tokenizer import Tokenizer
from pipeline.params.train import Optimizer, RoutingGate, Schedule, Train

__all__ = [
    "Bundled",
    "Clean",
    "Download",
    "Evaluate",
    "Export",
    "Finetune",
    "HuggingFace",
    "Instruct",
    "Local",
    "Model",
    "NearDuplicates",
    "Optimizer",
    "Params",
    "Quality",
    "RopeScaling",
    "RoutingGate",
    "Schedule",
    "Tokenizer",
    "Train",
    "Url",
    "Wandb",
    "filled",
    "leaves",
    "load",
    "read",
    "training",
    "validate",
]
