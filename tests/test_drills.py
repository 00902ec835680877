"""The failure drills at their smallest: what benchmarks/drills.py would report as lost fails this test."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform == "win32", reason="kills process groups")
def test_a_killed_stage_loses_nothing() -> None:
    drills = ["--kills", "2", "--only", "kill", "--only", "repro_after_damage"]
    command = [sys.executable, "-m", "benchmarks.drills", *drills]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, killed, damaged = done.stdout.splitlines()
    assert killed.startswith("| kill |") and killed.endswith("| nothing |")
    assert damaged.startswith("| repro_after_damage |") and damaged.endswith("| nothing |")
