"""What of a run is kept, and the table that a README shows."""

import json
from pathlib import Path

import pytest

from roboalign.core.errors import RoboAlignError
from tools.publish import publish


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": 10}


def finished_run(folder: Path) -> Path:
    direct = {"prefix": estimate(0.3, 0.25, 0.35), "l1_all": estimate(0.2, 0.1, 0.3)}
    metrics = {
        "vqa": {"direct": {"accuracy": estimate(0.5, 0.4, 0.6)}},
        "actions": {"direct": direct},
    }
    overall = {"successes": 3, "n": 10, "rate": 0.3, "low": 0.108, "high": 0.603}
    summary = {"arms": {"sft": metrics}, "success": {"arms": {"sft": {"overall": overall}}}}
    texts = {
        "report/index.html": "page",
        "report/table.txt": "table",
        "report/summary.json": json.dumps(summary),
        "recipe.yaml": "name: a",
        "collect/experts.json": "{}",
        "seed-4/rl/metrics.jsonl": "{}\n",
        "seed-4/language-rl/metrics.jsonl": "{}\n",
        "seed-4/eval/rollouts/sft.outdated-1/episodes.jsonl": "{}\n",
        "seed-4/eval/rollouts/sft/protocol.json": "{}",
        "seed-4/eval/rollouts/sft/episodes.jsonl": "{}\n{}\n",
        "seed-4/rl/model/model.safetensors": "large",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_records_are_copied_and_nothing_large(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "of-an-earlier-run").touch()
    table = publish(finished_run(tmp_path / "run"), tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "summary.json",
        "table.txt",
        "recipe.yaml",
        "experts.json",
        "seed-4-rl-metrics.jsonl",
        "seed-4-language-rl-metrics.jsonl",
        "seed-4-episodes-sft.jsonl",
        "protocol.json",
    }
    assert (tmp_path / "kept" / "seed-4-episodes-sft.jsonl").read_text() == "{}\n{}\n"
    row = "| SFT | 3/10 = 30% (11 to 60) | 50.0% (40.0–60.0) | 0.300 (0.250–0.350) | – | – | 0.200 (0.100–0.300) | – |"
    assert table.splitlines()[0].startswith("| backbone | success, 10 episodes | VQA, direct |")
    assert table.splitlines()[2:] == [row]


def test_a_run_without_a_report_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        RoboAlignError, match=r"summary.json: the file does not exist Fix: roboalign report RECIPE"
    ):
        publish(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
