"""The script that draws the table of behaviour models runs, and does not run again what it has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.real_data
@pytest.mark.slow
def test_one_small_model_is_measured_drawn_and_skipped_the_second_time(data_dir, tmp_path):
    if not (data_dir / "s3rec").is_dir():
        pytest.skip(f"no s3rec in {data_dir}")
    page, out = tmp_path / "page.md", tmp_path / "runs.jsonl"
    page.write_text(
        "before\n<!-- behaviour: drawn by benchmarks/behaviour.py -->\nold\n<!-- behaviour: end -->\nafter\n"
    )
    options = ["--data", "toys", "--model", "MLP", "DINBase", "--seeds", "0", "--epochs", "1", "--limit", "2000"]
    options += ["--data-dir", str(data_dir), "--out", str(out), "--page", str(page)]
    for _ in range(2):
        subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "behaviour.py", *options],
            check=True,
            capture_output=True,
        )
    mlp, base = (json.loads(line) for line in out.read_text().splitlines())
    assert (mlp["model"], base["model"]) == ("MLP", "DINBase")
    assert mlp["rows"] == base["rows"]
    assert mlp["parameters"] < base["parameters"]
    assert all(
        0.4 < run[f"{part}_{m}"] < 1 for run in (mlp, base) for part in ("valid", "test") for m in ("gauc", "auc")
    )
    drawn = page.read_text()
    assert drawn.startswith("before\n")
    assert drawn.endswith("after\n")
    assert "| DINBase | 0 |" in drawn
    assert "old" not in drawn
