"""The export of a checkpoint folder: for transformers, for llama.cpp where asked for, and the model card.

report = export(params, reports.read(REPORTS), Path("models/litgpt"), Path("models/hf"))
"""

from pathlib import Path
from typing import Any

from pipeline.export import card, gguf
from pipeline.export.reports import Reports
from pipeline.files import written_whole
from pipeline.huggingface import folder as huggingface
from pipeline.huggingface.verify import apart
from pipeline.model import checkpoint_folder
from pipeline.params import Params


def export(
    params: Params, said: Reports, checkpoint: Path, into: Path, instruction: str | None = None
) -> dict[str, Any]:
    """Write `into`, whole or not at all, and return the report; `instruction`: see `card.write`.

    Raises UserError for a checkpoint that cannot be exported, RuntimeError where transformers computes another model.
    """
    chosen = params.export
    model = checkpoint_folder.load(checkpoint)
    with written_whole(into) as folder:
        report = huggingface.to_huggingface(model, checkpoint, folder, chosen.dtype, chosen.max_shard_bytes)
        for kind in chosen.gguf:
            about = card.about(params, said, report)
            gguf.write(model, checkpoint, folder / f"{chosen.name}-{kind}.gguf", kind, about)
        card.write(params, said, folder, report, instruction)
    return report


def in_words(report: dict[str, Any]) -> str:
    parity = apart(report["max_logit_difference"])
    parity += f", {report['greedy_tokens_equal']} of {report['greedy_tokens']} greedy tokens equal"
    return f"{report['class']} in {report['dtype']}, {parity}"
