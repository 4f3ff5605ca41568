"""`roboalign distill`: which questions are asked, what is kept of the answers, and what is said about it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stage_run import context, do, recipe

from roboalign.conversations.conversation import read_conversations
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json, write_text
from roboalign.questions.registry import score_answer
from roboalign.run.folder import mixture_folder
from roboalign.run.graph import distill_stages
from roboalign.run.recipe import Recipe
from roboalign.run.stages import distill

LABELLED = STYLES["labelled"]

SMALL: dict[str, Any] = {
    "rl_questions": 8,
    "questions": 12,
    "samples": 2,
    "max_new_tokens": 8,
    "rl": {
        "reward": "answer",
        "prompts_per_rollout": 4,
        "prompts_per_update": 4,
        "micro_batch_size": 4,
        "samples": 2,
        "updates": 1,
        "max_new_tokens": 8,
    },
}


def settings(**changes: Any) -> Recipe:
    return recipe(distill={**SMALL, **changes})


@pytest.fixture
def mine(run_dir: Path, tmp_path: Path) -> Path:
    """A run whose stages up to the base are those of `run_dir`, and which may be written to."""
    for stage in ("collect", "tokenizer", "mix", "base"):
        (tmp_path / stage).symlink_to(run_dir / stage)
    return tmp_path


def test_questions_are_training_questions_of_the_groups_each_once(mine: Path) -> None:
    trained, sampled = distill.draw_prompts(context(mine, "distill/rl", settings()))
    assert len(trained) == 8 and len(sampled) == 12
    config = settings().distill
    for questions, count in ((trained, 4), (sampled, 6)):
        groups = Counter(
            next(group for group, types in config.groups.items() if question.turns[0].type in types)
            for question in questions
        )
        assert groups == {"choice": count, "spatial": count}
    asked = Counter(
        (question.images, question.turns[0].type, LABELLED.bare(question.turns[0].question))
        for question in [*trained, *sampled]
    )
    assert set(asked.values()) == {1}
    training = {
        (one.episode_id, one.frame) for one in read_conversations(mixture_folder(mine), "train")
    }
    for question in [*trained, *sampled]:
        (turn,) = question.turns
        assert (
            turn.mode == "think"
            and LABELLED.requests[1] in turn.question
            and turn.expected
            and not turn.answer
        )
        assert (question.episode_id, question.frame) in training


def test_more_questions_contain_the_fewer_and_another_seed_draws_others(mine: Path) -> None:
    trained, sampled = distill.draw_prompts(context(mine, "distill/rl", settings()))
    same, more = distill.draw_prompts(context(mine, "distill/rl", settings(questions=16)))
    assert same == trained and {one.id for one in sampled} < {one.id for one in more}
    other, _ = distill.draw_prompts(context(mine, "distill/rl", settings(seed=1)))
    assert {one.id for one in other} != {one.id for one in trained}


def test_the_three_stages_run_and_say_where_nothing_is_left(mine: Path) -> None:
    stages = {stage.name: stage for stage in distill_stages(settings())}
    assert do(stages, mine, "distill/rl", settings())["unique_prompts"] == 4
    assert (mine / "distill/rl/model/config.json").exists()
    row = do(stages, mine, "distill/sample", settings())
    assert row["questions"] == 12 and row["answers"] == 24 and row["generated_tokens"] > 0
    records = read_jsonl(mine / "distill/sample/answers/00000.jsonl")
    assert [len(record["answers"]) for record in records] == [2] * 12
    assert "<|image_pad|>" in read_json(mine / "distill/sample/special_tokens.json")
    with pytest.raises(
        RoboAlignError, match="no answer passed the filters"
    ):  # two updates of a base do not reason
        do(stages, mine, "distill/traces", settings())
    with pytest.raises(RoboAlignError, match="no question left to sample"):
        distill.sample(context(mine, "distill/sample", settings(rl_questions=100_000)))


def test_a_killed_sampling_goes_on_with_the_shards_that_are_missing(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def ask(mllm: Any, questions: Any, config: Any, number: int) -> list[dict[str, Any]]:
        asked.append(number)
        return [
            {"id": question.id, "answers": ["x"] * config.samples, "tokens": 1}
            for question in questions
        ]

    monkeypatch.setattr(distill, "SHARD", 5)
    monkeypatch.setattr(distill, "ask_mllm", ask)
    (mine / "distill/rl").mkdir(parents=True)
    (mine / "distill/rl/model").symlink_to(mine / "base/pretrain/model")
    sampling = context(mine, "distill/sample", settings())
    distill.sample(sampling)
    assert asked == [0, 1, 2]
    (sampling.folder / "answers/00001.jsonl").unlink()
    assert distill.sample(sampling)["generated_tokens"] == 12
    assert asked == [0, 1, 2, 1]


def test_what_is_kept_and_what_is_counted(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of twelve questions nine get a right answer twice, one a wrong and a right one, two only answers without tags."""
    asked = settings()
    _, questions = distill.draw_prompts(context(mine, "distill/traces", asked))

    def right(question: Any) -> str:
        label = question.turns[0].question.rsplit('"', 2)[1]
        reasoning = "The gripper is open now. That settles it."
        return f"<think>{reasoning}</think><answer>{label} {question.turns[0].expected}</answer>"

    answers = [[right(one), right(one)] for one in questions[:9]]
    answers += [
        [right(questions[9]).replace("</answer>", " not</answer>"), right(questions[9])],
        ["", ""],
        ["x", ""],
    ]
    sampled = mine / "distill/sample"
    write_text(
        sampled / "answers/00000.jsonl",
        "".join(
            json.dumps({"id": one.id, "answers": texts, "tokens": 2}) + "\n"
            for one, texts in zip(questions, answers)
        ),
    )
    write_json(sampled / "special_tokens.json", [])
    row = distill.traces(context(mine, "distill/traces", asked))
    manifest = read_json(mine / "distill/traces/manifest.json")
    assert manifest["outcomes"] == {
        "kept": 10,
        "duplicate": 9,
        "format: not one <answer>": 4,
        "wrong answer": 1,
    }
    assert (
        row["keep_rate"] == manifest["kept_questions"]["value"] == 10 / 12 and row["samples"] == 10
    )
    assert row["passing_answers"] == manifest["passing_answers"] == 19 / 24
    assert sum(entry["questions"] for entry in manifest["by_type"].values()) == 12
    kept = read_conversations(mine / "distill/traces", "train")
    assert [one.id for one in kept] == [
        f"distilled-{one.id}-{one is questions[9]:d}" for one in questions[:10]
    ]
    for one in kept:
        (turn,) = one.turns
        said = turn.answer.split("<answer>")[1].removesuffix("</answer>").split(" ", 1)[1]
        assert turn.kind == "reasoning" and score_answer(turn.type, turn.expected, said) == 1.0
    distill.print_keep_rate(mine)
    printed = capsys.readouterr().out
    assert (
        "83.3% of 12 questions gave a trace" in printed
        and "the paper: 76%" in printed
        and "79.2%" in printed
    )


def test_another_filter_leaves_the_samples_as_they_are() -> None:
    def keys(**changes: Any) -> dict[str, Any]:
        return {stage.name: stage.settings for stage in distill_stages(settings(**changes))}

    before, after = keys(), keys(min_words=9)
    assert {name for name in before if before[name] != after[name]} == {"distill/traces"}
