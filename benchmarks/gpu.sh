#!/usr/bin/env bash
# What only a GPU can show, sized for eight minutes on an H100: the tests that need one, then training speed as the
# tables of docs/benchmarks.md have it. Everything goes to the terminal; a part that fails does not end the others.
#
#   bash benchmarks/gpu.sh | tee gpu.txt
#   PYTHON=python3 bash benchmarks/gpu.sh     # a Python that has the packages already, where uv could fetch none
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 WANDB_MODE=disabled
if [ -n "${PYTHON:-}" ]; then
    run() { "$PYTHON" -m "$@"; }
else
    command -v uv > /dev/null || python3 -m pip install --quiet uv
    uv sync --quiet --extra gpu || exit 1
    run() { uv run --no-sync python -m "$@"; }
fi

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
run pipeline.cli doctor --deep
run pytest -n 0 tests/train/test_cuda.py
run benchmarks.train --preset moe_200m --steps 30 \
    --only ours --only "ours, compiled" --only "ours, dense baseline" --only litgpt
run benchmarks.train --preset rtx3060 --steps 20 --only ours --gigabytes 6
run benchmarks.train --preset kaggle_t4x2 --steps 20 --only ours --gigabytes 15
