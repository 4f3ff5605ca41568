"""The table of arms: what follows from its rows, and that one row more is an arm."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from roboalign.core.errors import RoboAlignError
from roboalign.run.answered import answered_pairs, answering_arm
from roboalign.run.arms import ARMS, BASE, MAIN, MIX, RL, SFT, Arm, Backbone, backbones, pairs
from roboalign.run.graph import plan_stages
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.stages.align import extra_sft
from roboalign.run.stages.visited import visited_tokens

OWN = Backbone("twice-sft", "align:extra_sft", (SFT,), ("sft",), curve="twice-sft", like="sft")
TWICE = Arm(
    "twice",
    "SFT, twice",
    "SFT, then the same again",
    OWN,
    compared_with=("sft",),
    claim="RL beats a second SFT",
)


def test_every_row_names_functions_that_there_are_and_arms_that_there_are() -> None:
    for name, arm in ARMS.items():
        assert arm.name == name and set(arm.compared_with) <= set(ARMS)
    for backbone in backbones(ARMS):
        assert callable(backbone.work())


def test_backbones_come_after_what_they_start_from_and_once() -> None:
    assert backbones(["blind", "sft", "roboalign"]) == [MIX, BASE, SFT, RL]
    assert [one.stage for one in backbones(["action-sft"])] == [
        "mix",
        "base",
        "mix-action",
        "action-sft",
    ]


def test_the_pairs_that_the_paper_compares() -> None:
    assert pairs(["sft", "roboalign", "base"]) == [
        ("sft", "roboalign"),
        ("base", "roboalign"),
        ("base", "sft"),
    ]
    found = pairs(ARMS)
    assert len(found) == len(set(found)) == 46
    heads = {name for name, arm in ARMS.items() if not arm.tokens and not arm.online}
    assert {before for before, after in found if after == MAIN} == heads - {MAIN, "random"}
    assert {pair for pair in found if pair[1] != MAIN} == {
        ("random", "base"),
        ("base", "sft"),
        ("base", "language-sft"),
        ("base", "action-sft"),
        ("sft", "ecot"),
        ("sft", "language-rl"),
        ("sft", "trajectory-rl"),
        ("sft", "roboalign-visited"),
        ("sft", "sft-visited"),
        ("roboalign-visited", "sft-visited"),
        ("base", "base-online"),
        ("sft", "sft-online"),
        ("roboalign", "roboalign-online"),
        ("sft-online", "roboalign-online"),
        ("extra-sft", "extra-sft-online"),
        ("sft-online", "extra-sft-online"),
        *(
            (start, f"{name}-tokens-{mode}-online")
            for mode in ("direct", "think")
            for start, name in (
                (f"sft-tokens-{mode}", "sft"),
                (f"roboalign-tokens-{mode}", "roboalign"),
                (f"sft-tokens-{mode}-online", "roboalign"),
            )
        ),
        ("sft-tokens-direct", "sft-tokens-think"),
        ("sft-tokens-direct", "roboalign-tokens-direct"),
        ("sft-tokens-think", "roboalign-tokens-think"),
        ("roboalign-tokens-direct", "roboalign-tokens-think"),
        *(
            pair
            for name in ("extra-sft", "roboalign-visited", "sft-visited")
            for pair in (
                ("sft-tokens-direct", f"{name}-tokens-direct"),
                ("sft-tokens-think", f"{name}-tokens-think"),
                (f"{name}-tokens-direct", f"{name}-tokens-think"),
            )
        ),
    }


def test_a_token_arm_has_a_cheap_stage_in_place_of_a_head() -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "arms": ["sft", "roboalign-tokens-think"], "backbone": {"source": "train"}}
    )
    stages = {stage.name: stage for stage in plan_stages(recipe)}
    made = stages["seed-0/token-policy/roboalign-tokens-think"]
    assert made.needs == ("seed-0/rl",) and not made.together
    assert made.settings["token_policy"]["temperature"] == 0.0
    rolled = stages["seed-0/eval/rollouts/roboalign-tokens-think"]
    assert rolled.needs == ("seed-0/token-policy/roboalign-tokens-think",)
    assert "seed-0/head/roboalign-tokens-think" not in stages
    assert not any(ARMS[arm].tokens for arm in Recipe(name="x").arms)
    with pytest.raises(ValueError, match=r"arms .*'roboalign-tokens-think'.* leave them out"):
        Recipe.model_validate(
            {"name": "x", "arms": ["roboalign-tokens-think"], "mixture": "somewhere"}
        )


def test_each_mllm_is_asked_once_token_policies_included() -> None:
    arms = ("sft-tokens-think", "sft-tokens-direct", "sft-tokens-direct-online")
    arms += ("roboalign-visited", "roboalign-visited-tokens-think")
    recipe = Recipe.model_validate({"name": "x", "arms": arms, "backbone": {"source": "train"}})
    stages = {stage.name: stage for stage in plan_stages(recipe)}
    asked = ("sft-tokens-think", "sft-tokens-direct-online", "roboalign-visited")
    for kind in ("tokens", "visited"):
        prefix = f"seed-0/eval/{kind}/"
        assert {name for name in stages if name.startswith(prefix)} == {prefix + a for a in asked}
    made = stages["seed-0/eval/visited/sft-tokens-direct-online"]
    assert made.needs == ("seed-0/online/sft-tokens-direct-online", "seed-0/visited")
    assert made.work is visited_tokens and made.arm == "sft-tokens-direct-online"
    assert set(answered_pairs(recipe.arms)) == {
        ("sft-tokens-think", "sft-tokens-direct-online"),
        ("sft-tokens-think", "roboalign-visited"),
    }
    assert answering_arm("blind", ["blind", "roboalign"]) is None


def test_an_online_arm_continues_the_head_of_another_arm() -> None:
    given = {"name": "x", "arms": ["sft", "sft-online"], "backbone": {"source": "train"}}
    recipe = Recipe.model_validate(given)
    stages = {stage.name: stage for stage in plan_stages(recipe)}
    made = stages["seed-0/online/sft-online"]
    assert made.needs == ("seed-0/head/sft",) and not made.together
    assert made.settings["online"]["updates"] == 30
    assert made.settings["rollout"]["replan_every"] == recipe.rollout.replan_every
    assert "episodes" not in made.settings["rollout"], "more measured episodes train nothing again"
    assert stages["seed-0/eval/rollouts/sft-online"].needs == ("seed-0/online/sft-online",)
    assert not {"seed-0/head/sft-online", "seed-0/eval/tokens/sft-online"} & {*stages}


def test_an_online_arm_of_tokens_continues_a_token_policy() -> None:
    given = {"name": "x", "arms": ["sft-tokens-think", "sft-tokens-think-online"]}
    recipe = Recipe.model_validate(given | {"rl": {"temperature": 1.6}})
    stages = {stage.name: stage for stage in plan_stages(recipe)}
    made = stages["seed-0/online/sft-tokens-think-online"]
    assert made.needs == ("seed-0/token-policy/sft-tokens-think",)
    assert made.settings["rl"]["temperature"] == 1.6 and "samples" not in made.settings["rl"]
    assert not {name for name in stages if name.startswith("seed-0/head")}
    with pytest.raises(ValueError, match="has no critic"):
        Recipe.model_validate(given | {"online": {"algorithm": "ppo"}})


LIBERO = {"benchmark": "libero_goal", "downstream": {"first_seed": 1000}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["sft-online"]}, "starts from the policy of sft; add sft to arms"),
        # 30 updates of 4 x 8 groups over 5 tasks: 192 seeds of each.
        ({"online": {"first_seed": 999_809}}, "and seed 1000000 measures policies"),
        (
            {"collect": LIBERO, "online": {"first_seed": 49}},
            "and seed 49 measures policies",
        ),
        (
            {"collect": LIBERO, "online": {"first_seed": 60}},
            "libero_goal has initial states for training of the seeds 1000 to 999999",
        ),
    ],
)
def test_what_an_online_arm_refuses_before_anything_runs(
    change: dict[str, object], message: str
) -> None:
    given = {"name": "x", "arms": ["sft", "sft-online"]}
    Recipe.model_validate(given | {"online": {"first_seed": 999_808}})
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(given | change)


def test_one_row_more_is_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"name": "x", "arms": ["sft", "twice", "roboalign"], "backbone": {"source": "train"}}
    with pytest.raises(ValueError, match=r"arm `twice` not found\. Available: base, language-sft"):
        Recipe.model_validate(given)
    monkeypatch.setitem(ARMS, "twice", TWICE)
    recipe = Recipe.model_validate(given)
    stages = {stage.name: stage for stage in plan_stages(recipe)}
    made = stages["seed-0/twice-sft"]
    assert made.work is extra_sft and made.needs == ("seed-0/sft",) and made.together
    assert made.settings["sft"]["learning_rate"] == recipe.sft.learning_rate
    assert stages["seed-0/head/twice"].needs == ("seed-0/twice-sft",)
    assert {"seed-0/eval/tokens/twice", "seed-0/eval/rollouts/twice"} <= set(stages)
    assert {("twice", "roboalign"), ("sft", "twice")} < set(pairs(recipe.arms))


def test_an_unknown_arm_in_a_file_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\narms: [sft, robalign]\n")
    with pytest.raises(RoboAlignError, match=r"`arms\.1`: arm `robalign` not found\. Available:"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("first", "known"), [(10_239, "demonstrations"), (999_997, "episodes that measure policies")]
)
def test_visited_episodes_are_neither_shown_nor_measured(first: int, known: str) -> None:
    """8 and 2 episodes from `first`; demonstrations have seeds 10,000 to 10,239."""
    values: dict[str, Any] = {
        "name": "x",
        "arms": ("sft", "sft-visited"),
        "collect": {"align": {"first_seed": 10_000, "episodes_per_task": 48}},
    }
    Recipe.model_validate({**values, "visited": {"first_seed": 10_240}})
    wrong = {"first_seed": first}
    with pytest.raises(ValidationError, match=f"visited.first_seed {first} gives 10 .* {known}"):
        Recipe.model_validate({**values, "visited": wrong})
    Recipe.model_validate({**values, "visited": wrong, "arms": ("sft",)})
