"""Finetuning: the loop of pretraining, on a token set of conversations, from a checkpoint's weights.

    report = finetune(params, data=Path("data/instruct"), into=Path("models/finetuned"), adapter=…, runs=…, …)

What is trained is all weights, or a low-rank adapter beside frozen ones (lora.py).
"""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.finetune.lora import Lora
from pipeline.model import checkpoint_folder
from pipeline.params import Params, training
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.store import TokenStore
from pipeline.train import loop, plan, resume


def finetune(params: Params, *, data: Path, into: Path, adapter: Path, **places: Any) -> dict[str, Any]:
    """Train `params.finetune.checkpoint` on data/{train,val}; return the report (empty but on rank 0).

    into: the trained model as a litgpt checkpoint folder, an adapter added to its weights; adapter: the adapter alone
    in PEFT's format, a folder with a note where all weights train. places: `runs`, `live`, `plots`, `resume`, `run` and
    `check` as `pipeline.train.loop.train` takes them. Raises what that raises.
    """
    own = of_checkpoint(params)
    refuse_documents(data)
    lora = low_rank(params, adapter)
    report = loop.train(own, data, data / "tokenizer", into, adapter=lora, **places)
    if report:
        report["method"] = params.finetune.method
        report |= _trained(own, data, lora)
        if lora is None:
            with written_whole(adapter) as partial:
                partial.mkdir()
                (partial / "README.md").write_text("All weights were trained: there is no adapter.\n", encoding="utf-8")
    return report


def of_checkpoint(params: Params) -> Params:
    """The parameters of the loop: the model that the checkpoint holds, the training that `params.finetune` asks for.

    Raises UserError where there is no such checkpoint, or the settings do not go together.
    """
    model, _ = checkpoint_folder.described(Path(params.finetune.checkpoint))
    try:
        train = training(params.finetune, params.train, model.block_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    return params.model_copy(update={"model": model, "train": train})


def refuse_documents(data: Path) -> None:
    """Raise UserError for a token set that is not one of conversations."""
    if not TokenStore(data / "train").flags:
        raise UserError(f"{data / 'train'} is no token set of conversations; run: dvc repro finetune/dvc.yaml:instruct")


def fingerprint(params: Params, data: Path, adapter: Path) -> str:
    """A short name that two runs share only if they end with the same weights."""
    own = of_checkpoint(params)
    refuse_documents(data)
    return resume.fingerprint(resume.identity(own, data, data / "tokenizer", low_rank(params, adapter)))


def low_rank(params: Params, adapter: Path) -> Lora | None:
    """What trains beside the frozen weights; None where all weights train."""
    return Lora(params.finetune, adapter) if params.finetune.method == "lora" else None


def _trained(params: Params, data: Path, lora: Lora | None) -> dict[str, float]:
    """How many parameters train, and their share of the pretrained model's."""
    weights = plan.weights(params.model, vocabulary.vocab_size(data / "tokenizer"), lora)
    return {
        "trained_parameters": weights.trained,
        "trained_share": weights.trained / (weights.frozen or weights.trained),
    }
