#!/usr/bin/env bash
# What only a GPU can show, sized for eight minutes on an H100: the tests that need one, then training speed as the
# tables of docs/benchmarks.md have it. Everything goes to the terminal; a part that fails does not end the others.
#
#   UV_FIND_LINKS=FOLDER bash benchmarks/gpu.sh | tee gpu.txt     # UV_FIND_LINKS: wheels of your own, if you have some
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 WANDB_MODE=disabled
command -v uv > /dev/null || python3 -m pip install --quiet uv
uv sync --quiet --extra gpu || exit 1
run() { uv run --no-sync "$@"; }

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
run moe doctor --deep
run pytest -n 0 tests/train/test_cuda.py
run python -m benchmarks.train --preset moe_200m --steps 30 \
    --only ours --only "ours, compiled" --only "ours, dense baseline" --only litgpt
run python -m benchmarks.train --preset rtx3060 --steps 20 --only ours --gigabytes 6
run python -m benchmarks.train --preset kaggle_t4x2 --steps 20 --only ours --gigabytes 15
