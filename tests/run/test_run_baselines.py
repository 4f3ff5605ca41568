"""The paper's baselines: each matched to RoboAlign's arms in everything but what it changes."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_run import context, do, recipe

from roboalign.conversations.conversation import (
    Conversation,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json, write_json
from roboalign.mixture.packed import MixConfig
from roboalign.questions.facts.scene import AXES
from roboalign.run.folder import mixture_folder
from roboalign.run.graph import plan_stages
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context
from roboalign.run.stages import align, baselines
from roboalign.run.stages.base import LANGUAGE

TRACED = {"general": 1.0, "spatial": 3.0, "state": 1.0, "planning": 3.0, "trace": 1.0}


def settings(**changes: Any) -> Recipe:
    arms = (
        "base",
        "language-sft",
        "action-sft",
        "sft",
        "ecot",
        "language-rl",
        "trajectory-rl",
        "roboalign",
    )
    return recipe(arms=arms, mix={**recipe().mix.model_dump(), "weights": TRACED}, **changes)


@pytest.fixture
def mine(run_dir: Path, tmp_path: Path) -> Path:
    """A run whose stages up to SFT are those of `run_dir`, and which may be written to."""
    (tmp_path / "seed-0").mkdir()
    for stage in ("collect", "tokenizer", "base", "seed-0/sft"):
        (tmp_path / stage).symlink_to(run_dir / stage)
    shutil.copytree(run_dir / "mix", tmp_path / "mix")
    return tmp_path


def built(run: Path, name: str, **changes: Any) -> tuple[dict[str, Any], list[Conversation]]:
    """The ledger of one of the two mixtures, and its conversations."""
    asked = recipe(arms=("language-sft", "action-sft"), **changes)  # the mixture that `run` has
    row = do({stage.name: stage for stage in plan_stages(asked)}, run, name, asked)
    return row, read_conversations(mixture_folder(run, name), "train")


def test_the_language_mixture_has_a_question_in_the_place_of_each_action(mine: Path) -> None:
    row, found = built(mine, "mix-language")
    whole = read_conversations(mixture_folder(mine), "train")
    assert [(one.episode_id, one.frame, len(one.turns)) for one in found] == [
        (one.episode_id, one.frame, len(one.turns)) for one in whole
    ]
    assert {turn.kind for one in found for turn in one.turns} == set(LANGUAGE)
    assert any(turn.kind == "action" for one in whole for turn in one.turns)
    assert (
        row["samples"]
        == row["samples_of_the_whole_mixture"]
        == sum(len(one.turns) for one in whole)
    )


def test_the_action_mixture_has_as_many_samples_of_as_many_frames_as_there_are(mine: Path) -> None:
    row, found = built(mine, "mix-action")
    whole = read_json(mixture_folder(mine) / "manifest.json")
    turns = [turn for one in found for turn in one.turns]
    assert len(turns) == len(found) == row["samples"] == whole["counts"]["train"]["turns"]
    assert {(turn.kind, turn.mode) for turn in turns} == {("action", "direct")}
    frames = Counter((one.episode_id, one.frame) for one in found)
    there_are = 12 * len(whole["splits"]["train"])  # steps of an episode
    assert row["frames"] == len(frames) == there_are < len(found)
    assert {one.episode_id for one in found} == set(whole["splits"]["train"])
    assert not read_conversations(mixture_folder(mine, "mix-action"), "heldout")


def test_the_papers_counts_are_its_share(mine: Path) -> None:
    language, _ = built(mine, "mix-language", baselines={"counts": "paper"})
    action, _ = built(mine, "mix-action", baselines={"counts": "paper"})
    turns = action["samples_of_the_whole_mixture"]
    assert language["conversations"] == 99  # 120 * 1.88 / 2.28 = 98.9
    assert action["samples"] == round(turns * 188 / 228)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the trainers are called with, in place of a training."""
    seen: dict[str, Any] = {}

    def sft(
        mllm: Any, conversations: Any, config: Any, folder: Path, *, label: str
    ) -> dict[str, Any]:
        seen.update(start=mllm, conversations=list(conversations), config=config)
        return {}

    def grpo(
        mllm: Any, fast: Any, prompts: Any, config: Any, folder: Path, *, replay: Any, label: str
    ) -> Any:
        seen.update(start=mllm, conversations=list(prompts), config=config, replay=list(replay))
        return {}

    for module in (align, baselines):
        monkeypatch.setattr(module, "train_sft", sft)
    monkeypatch.setattr(Context, "load", lambda self, folder: folder)
    monkeypatch.setattr(align, "train_grpo", grpo)
    return seen


def test_both_start_at_the_base_and_actions_fill_a_batch_with_as_many_turns(
    mine: Path, given: dict[str, Any]
) -> None:
    for name in ("mix-language", "mix-action"):
        built(mine, name)
    baselines.language_sft(context(mine, "seed-0/language-sft", settings()))
    assert given["start"] == mine / "base" / "model" and given["config"] == settings().sft
    assert {turn.kind for one in given["conversations"] for turn in one.turns} == set(LANGUAGE)
    baselines.action_sft(context(mine, "seed-3/action-sft", settings()))
    whole = read_json(mixture_folder(mine) / "manifest.json")["counts"]["train"]
    per = given["config"].batch_size / settings().sft.batch_size
    assert per == round(whole["turns"] / whole["conversations"]) == 6  # four to eight turns
    changed = given["config"].model_copy(
        update={"batch_size": settings().sft.batch_size, "seed": 0}
    )
    assert (
        changed == settings().sft and given["config"].seed == 3
    )  # max_steps included: as many updates
    assert (
        len(given["conversations"]) == whole["turns"] and given["start"] == mine / "base" / "model"
    )


def test_updates_are_those_of_the_whole_mixture_or_the_papers_share(
    mine: Path, given: dict[str, Any]
) -> None:
    for name in ("mix-language", "mix-action"):
        built(mine, name)
    passes = {**recipe().sft.model_dump(), "max_steps": None, "epochs": 1.5}
    for counts, updates in (
        ("matched", 45),
        ("paper", 37),
    ):  # 120 conversations, 1.5 times, four an update
        asked = settings(sft=passes, baselines={"counts": counts})
        for name in ("language-sft", "action-sft"):
            {stage.name: stage for stage in plan_stages(asked)}[f"seed-0/{name}"].work(
                context(mine, f"seed-0/{name}", asked)
            )
            assert given["config"].max_steps == updates


def test_images_that_are_asked_about_at_the_end_are_not_trained_on(
    mine: Path, given: dict[str, Any]
) -> None:
    _, found = built(mine, "mix-action")
    leaked = found[5]
    changed = mixture_folder(mine) / "heldout.parquet"
    write_conversations(changed, [leaked])
    manifest = read_json(changed.with_name("manifest.json"))
    manifest["shards"][changed.name] = hash_file(changed)
    write_json(changed.with_name("manifest.json"), manifest)
    row = baselines.action_sft(context(mine, "seed-0/action-sft", settings()))
    same = sum(one.images == leaked.images for one in found)
    assert (
        row["dropped_as_heldout"] == same > 0 and len(given["conversations"]) == len(found) - same
    )


def test_ecot_imitates_a_reasoning_and_the_recorded_action(
    mine: Path, given: dict[str, Any]
) -> None:
    asked = settings(rl={**recipe().rl.model_dump(), "updates": 6})
    align.extra_sft(context(mine, "seed-0/extra-sft", asked))
    control = dict(given)
    baselines.ecot(context(mine, "seed-0/ecot", asked))
    assert (
        given["config"] == control["config"]
        and given["start"] == control["start"] == mine / "seed-0/sft/model"
    )
    assert [one.id for one in given["conversations"]] == [
        one.id for one in control["conversations"]
    ]
    recorded = {one.id: one for one in read_conversations(mixture_folder(mine), "rl")}
    answers = [(one, one.turns[0]) for one in given["conversations"] if one.id in recorded]
    assert len(answers) == 6 * asked.rl.prompts_per_update
    ways = "|".join(word for axis in AXES for word in axis)
    for one, turn in answers:
        original = recorded[one.id].turns[0]
        assert (
            turn.question == original.question and STYLES["labelled"].requests[1] in turn.question
        )
        said = re.fullmatch(r"<think>(.+)</think><answer>(.+)</answer>", turn.answer)
        assert said and said[2] == original.expected == turn.expected
        assert (
            re.search(rf"The gripper should (stay|move ({ways})).*\.$", said[1])
            and said[1].count(". ") >= 1
        )


@pytest.mark.parametrize(
    ("name", "kind", "reward", "expected"),
    [
        ("language-rl", "movement_choice", "answer", r"[ABC]"),
        ("trajectory-rl", "trace", "trace", r"\d+ \d+, \d+ \d+, \d+ \d+"),
    ],
)
def test_the_other_goals_of_rl_change_question_and_reward_alone(
    mine: Path, given: dict[str, Any], name: str, kind: str, reward: str, expected: str
) -> None:
    align.rl(context(mine, "seed-0/rl", settings()))
    own = dict(given)
    row = {stage.name: stage for stage in plan_stages(settings())}[f"seed-0/{name}"].work(
        context(mine, f"seed-0/{name}", settings())
    )
    assert row["frames_that_cannot_be_asked"] == 0
    assert given["config"] == own["config"].model_copy(update={"reward": reward})
    assert given["start"] == own["start"] and given["replay"] == own["replay"]
    assert [(one.episode_id, one.frame, one.images) for one in given["conversations"]] == [
        (one.episode_id, one.frame, one.images) for one in own["conversations"]
    ]
    for one in given["conversations"]:
        (turn,) = one.turns
        assert (turn.type, turn.mode, turn.kind) == (
            kind,
            "think",
            "reasoning",
        ) and one.target is None
        assert (
            re.fullmatch(expected, turn.expected)
            and STYLES["labelled"].requests[1] in turn.question
        )


def test_frames_that_cannot_be_asked_are_counted(
    mine: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = baselines.ask, [0, 2]

    def ask(*arguments: Any) -> Any:
        left[1] -= 1
        return None if left[1] >= 0 else real(*arguments)

    monkeypatch.setattr(baselines, "ask", ask)
    count = len(read_conversations(mixture_folder(mine), "rl"))
    row = baselines.trajectory_rl(context(mine, "seed-0/trajectory-rl", settings()))
    assert row["frames_that_cannot_be_asked"] == 2 and len(given["conversations"]) == count - 2
    monkeypatch.setattr(baselines, "ask", lambda *arguments: None)
    with pytest.raises(RoboAlignError, match="no frame of the RL subset can be asked `trace`"):
        baselines.trajectory_rl(context(mine, "seed-0/trajectory-rl", settings()))


def test_every_new_arm_trains(mine: Path) -> None:
    for name in ("mix-language", "mix-action"):
        built(mine, name)
    start = load_file(mine / "base/model/model.safetensors")
    for name, work in (
        ("language-sft", baselines.language_sft),
        ("action-sft", baselines.action_sft),
        ("ecot", baselines.ecot),
        ("language-rl", baselines.language_rl),
        ("trajectory-rl", baselines.trajectory_rl),
    ):
        row = work(context(mine, f"seed-0/{name}", settings()))
        assert row["updates"] == 2
        if name.endswith("-sft"):
            assert row["turns"] >= 2 * 4 and 0 < row["answer_tokens"] < row["tokens"]
        weights = load_file(mine / f"seed-0/{name}/model/model.safetensors")
        assert any(not torch.equal(start[key], weights[key]) for key in start)
    assert MixConfig().weights.get("trace") is None  # no recipe asks for it without naming it
