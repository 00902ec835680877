"""W&B as a watcher: metrics live, datasets and models as artifacts, both ways.

Configured by WANDB_* variables and `wandb login`, never by params, so that watching re-runs no stage. Nothing here
stops a stage: what W&B cannot do is reported once in words and left for `wandb sync` and `moe mirror`.

    with stage_run("train", config) as run:     # a stage: metrics, what it read, what it wrote
        run.log({"loss": 2.1}, tokens=8192)
        run.mirror()
    mirror(); fetch("team/project/model:best")  # the commands `moe mirror` and `moe fetch`

server.py is what is said to W&B outside of a run, artifacts.py what an artifact is, runs.py a stage's run,
exchange.py the commands.
"""

from pipeline.tracking.artifacts import ARTIFACTS
from pipeline.tracking.exchange import Source, fetch, mirror, source_artifact
from pipeline.tracking.runs import Run, stage_run

__all__ = ["ARTIFACTS", "Run", "Source", "fetch", "mirror", "source_artifact", "stage_run"]
