"""Tasks of EleutherAI's lm-eval harness, given as local files, run on the model as it is exported.

tasks = load(["tasks/endings.yaml"])
results = run(model, tokenizer_folder, tasks, device, batch_size=16)   # {task: {metric: value}}

A task file is lm-eval's own YAML; data beside it is named by `dataset_path: json` and `dataset_kwargs: {data_files: …}`
(paths from where the command runs). Needs the extra `lm-eval`.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.model.build import MoEGPT


def load(tasks: list[str]) -> list[Any]:
    """lm-eval's tasks, with their data; its index of thousands of tasks of its own is not read.

    A task file may name Python functions (`!function`), which run: give only files you trust. Raises UserError without
    the extra; for a task file that is missing or that lm-eval does not understand; for data it cannot read.
    """
    if not tasks:
        return []
    if not installed():
        raise UserError("evaluate.lm_eval_tasks: needs the extra lm-eval; run: uv sync --extra lm-eval")
    for task in tasks:
        if not Path(task).is_file():
            raise UserError(f"evaluate.lm_eval_tasks: {task}: no such file; allowed: task files of lm-eval (*.yaml)")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    loaded: list[Any] = []
    for task in tasks:
        try:
            loaded += manager.load([task])["tasks"].values()
        except Exception as error:  # whatever lm-eval and datasets raise for a file of the user's that is wrong
            raise UserError(f"evaluate.lm_eval_tasks: {task}: {type(error).__name__}: {error}") from error
    return loaded


def run(
    model: MoEGPT, tokenizer: Path, tasks: list[Any], device: torch.device, batch_size: int
) -> dict[str, dict[str, float]]:
    """Every metric of every task. A temporary export, loaded by transformers, answers."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from pipeline.huggingface import folder as huggingface  # imports transformers, which nothing else here needs

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model"
        huggingface.to_huggingface(model, tokenizer, exported, "float32", 2**40)
        answering = HFLM(pretrained=str(exported), device=str(device), dtype="float32", batch_size=batch_size)
        found = simple_evaluate(
            answering,
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=False,
            verbosity="ERROR",
        )
    assert found is not None
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and "stderr" not in name and name != "sample_len"
        }
        for task, metrics in found["results"].items()
    }


def installed() -> bool:
    """Whether the extra is: lm-eval, and accelerate, which its transformers model imports."""
    return find_spec("lm_eval") is not None and find_spec("accelerate") is not None
