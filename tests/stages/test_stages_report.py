"""What the report stage gathers from a run's folder."""

from pathlib import Path

import pytest
from stage_run import recipe

from roboalign.core.files import write_json
from roboalign.run.graph import plan_stages
from roboalign.run.stages import report


def test_the_ledger_holds_the_recipes_stages_and_nothing_that_an_earlier_one_left(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(
        (
            "report",
            "seed-0/sft",
            "collect",
            "mix",
            "seed-0/rl",
            "seed-7/sft",
            "mix.outdated-12345678-1",
        )
    ):
        write_json(
            tmp_path / name / "stage.json",
            {
                "stage": name,
                "key": "k",
                "needs": [],
                "settings": {},
                "seconds": number,
                "samples": 2,
            },
        )
    stages = [stage.name for stage in plan_stages(recipe(arms=("sft",)))]
    rows = report.read_ledger(tmp_path, stages)
    assert rows == [
        {"stage": "collect", "seconds": 2, "samples": 2},
        {"stage": "mix", "seconds": 3, "samples": 2},
        {"stage": "seed-0/sft", "seconds": 1, "samples": 2},
        {"stage": "report", "seconds": 0, "samples": 2},
    ]


def test_answers_of_all_seeds_and_none_for_the_blind_arm(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / f"seed-{seed}" / "eval" / "tokens" / "sft"
        folder.mkdir(parents=True)
        (folder / "answers.jsonl").write_text(f'{{"run_seed": {seed}}}\n')
    both = recipe(seeds=(1, 2))
    assert [row["run_seed"] for row in report._answers(tmp_path, both, "sft")] == [1, 2]
    assert report._answers(tmp_path, both, "blind") == []
    assert report._answers(tmp_path, recipe(seeds=(2,)), "sft") == [{"run_seed": 2}]


def test_the_commit_is_a_hash_or_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report.commit()
    assert found == "unknown" or len(found.removesuffix("+changes")) == 12
    monkeypatch.setenv("PATH", "")
    assert report.commit() == "unknown"
