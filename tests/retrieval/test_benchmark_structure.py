"""The script that draws the table of structure search runs, and does not run again what it has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.real_data
@pytest.mark.slow
def test_one_part_is_measured_drawn_and_skipped_the_second_time(data_dir, tmp_path):
    if not (data_dir / "sasrec").is_dir():
        pytest.skip(f"no sasrec in {data_dir}")
    page, out = tmp_path / "page.md", tmp_path / "runs.jsonl"
    page.write_text(
        "before\n<!-- structure: drawn by benchmarks/structure.py -->\nold\n<!-- structure: end -->\nafter\n"
    )
    options = ["--part", "paths", "--users", "40", "--epochs", "1", "--limit", "200"]
    options += ["--data-dir", str(data_dir), "--out", str(out), "--page", str(page)]
    for _ in range(2):
        subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "structure.py", *options], check=True, capture_output=True
        )
    (line,) = (json.loads(text) for text in out.read_text().splitlines())
    assert line["width"] in [point["width"] for point in line["valid"]]
    assert all(0 <= point[name] <= 1.2 for point in line["test"] for name in ("recall", "share", "truth", "brute"))
    drawn = page.read_text()
    assert drawn.startswith("before\n")
    assert drawn.endswith("after\n")
    assert "| DeepRetrieval |" in drawn
    assert "old" not in drawn
