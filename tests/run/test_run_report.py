"""What the report stage gathers from a run's folder."""

from pathlib import Path

import pytest
from stage_run import recipe

from roboalign.core.files import write_json
from roboalign.run.answered import answers_of
from roboalign.run.graph import plan_stages
from roboalign.run.stages import report
from roboalign.sim.libero.spec import LiberoSpec
from roboalign.sim.metaworld.spec import MetaWorldSpec


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
    assert [row["run_seed"] for row in answers_of(tmp_path, (1, 2), "sft")] == [1, 2]
    assert answers_of(tmp_path, (1, 2), "blind") == []
    assert answers_of(tmp_path, (2,), "sft") == [{"run_seed": 2}]


def test_the_commit_is_a_hash_or_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report.commit()
    assert found == "unknown" or len(found.removesuffix("+changes")) == 12
    monkeypatch.setenv("PATH", "")
    assert report.commit() == "unknown"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (8_291_375_616, "8.29 billion"),
        (72_700_000_000, "72.7 billion"),
        (3_210_000, "3.21 million"),
        (178_656, "179 thousand"),
        (999_900, "1.00 million"),
        (512, "512"),
    ],
)
def test_a_number_of_parameters_in_words(count: int, words: str) -> None:
    assert report.number_in_words(count) == words


def test_the_report_says_what_is_true_of_this_run() -> None:
    tiny = report.notes(recipe(), report.number_in_words(178_656))
    assert tiny[0] == MetaWorldSpec.notes[0]
    assert "179 thousand parameters and a small vocabulary of its own" in tiny[-2]
    assert "generated from templates" in tiny[-1]
    libero = {"benchmark": "libero_goal", "downstream_tasks": "all"}
    given = recipe(
        backbone={"source": "/models/Qwen2.5-VL-7B-Instruct"},
        mixture="/data/mixtures/paper",
        collect={**libero, "downstream": {"first_seed": 1000}},
        tokenizer={"horizon": 8},
        rollout={},
    )
    large = report.notes(given, "8.29 billion")
    assert large[:-2] == list(LiberoSpec.notes)
    assert "8.29 billion parameters:" in large[-2] and "vocabulary" not in large[-2]
    assert "mixture paper" in large[-1] and "templates" not in large[-1]
