"""Small models to generate with, of each kind, whose weights make contexts matter."""

from pathlib import Path

import torch

from pipeline import params
from pipeline.generate.generation import Generator
from pipeline.model import build, checkpoint_folder
from pipeline.tokens import tokenizer as vocabulary

PROMPTS = ["Once upon a time", "The", "One day, a little girl named Lily went to the park with her dog and", "A cat"]
KINDS: dict[str, dict[str, object]] = {
    "softmax": {},
    "dense": {"n_expert": 0, "n_expert_per_token": 0},
    "qk-norm": {"norm_qk": True, "n_query_groups": 4, "moe_every": 2},
    "sigmoid": {"router": "sigmoid", "n_shared_expert": 1, "routed_scaling_factor": 1.5, "norm_qk": True},
}


def lively(model: build.MoEGPT) -> build.MoEGPT:
    """Weights so large that contexts matter and the likeliest token is clearly so."""
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=draws) / weight.size(-1) ** 0.5)
    return model


def made(
    parameters: params.Params, folder: Path, vocabulary_folder: Path, kind: str = "softmax", **changes: object
) -> Generator:
    """The generator of a checkpoint written to `folder`."""
    described = parameters.model.model_copy(update=KINDS[kind] | changes)
    model = lively(build.build(described, vocabulary.vocab_size(vocabulary_folder)))
    checkpoint_folder.save(model, folder, vocabulary_folder)
    return Generator.open(folder)
