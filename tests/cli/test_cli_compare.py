"""`roboalign compare`: golden numbers by hand, both layouts of a folder, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from roboalign.cli.compare import compare_runs, recipe_differences
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json, write_text
from roboalign.run.load import dump_recipe
from roboalign.run.recipe import Recipe
from roboalign.sim.registry import FIRST_EVALUATION_SEED

PUBLISHED = Path(__file__).parents[2] / "docs" / "results"
TASKS = ("door-lock-v3", "door-unlock-v3")


def write_run(
    folder: Path,
    solved: dict[str, set[int]],
    *,
    published: bool = False,
    crashed: set[int] = frozenset(),
    versions: str = "",
    **settings: Any,
) -> str:
    """A run of 2 tasks x 10 episodes in which each arm solves these episodes, numbered 0 to 19."""
    values = {
        "name": "mine",
        "arms": tuple(solved),
        "rollout": {"episodes": 10},
        "collect": {"downstream_tasks": TASKS},
        **settings,
    }
    recipe = Recipe.model_validate(values)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    if published or versions:
        path = folder / ("summary.json" if published else "report/summary.json")
        write_json(path, {"environment": {"versions": versions}})
    evaluation_seed = FIRST_EVALUATION_SEED if recipe.collect.benchmark == "metaworld" else 0
    for arm, numbers in solved.items():
        for seed in recipe.seeds:
            rows = [
                {
                    "task": task,
                    "seed": evaluation_seed + i,
                    "success": i + 10 * t in numbers,
                    "steps": 9,
                    "crash": "NaN in qacc" if i + 10 * t in crashed else None,
                    "run_seed": seed,
                }
                for t, task in enumerate(recipe.collect.downstream_tasks)
                for i in range(recipe.rollout.episodes)
            ]
            where = (
                "seed-{}-episodes-{}.jsonl"
                if published
                else "seed-{}/eval/rollouts/{}/episodes.jsonl"
            )
            write_text(
                folder / where.format(seed, arm), "".join(json.dumps(row) + "\n" for row in rows)
            )
    return str(folder)


def test_numbers_by_hand_in_both_layouts(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"roboalign": set(range(8))})
    two = write_run(tmp_path / "two", {"roboalign": set(range(2, 16))}, published=True)
    found = json.loads(compare_runs([one, two], as_json=True))
    pair, arms = found["pair"], found["arms"]
    assert (pair["n"], pair["only_before"], pair["only_after"]) == (20, 2, 8)
    assert pair["p"] == pytest.approx(binomtest(8, 10, 0.5).pvalue)
    assert pair["difference"]["value"] == pytest.approx(0.3)
    row = arms[f"{two} roboalign"]["overall"]
    assert (row["successes"], row["n"]) == (14, 20)
    assert (row["low"], row["high"]) == pytest.approx(
        (0.4810, 0.8545), abs=1e-3
    )  # Wilson's, from the formula
    lines = compare_runs([one, two]).splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    text = " ".join(" ".join(lines).split())
    assert "14/20 = 70.0%" in text and "8/20 = 40.0%" in text
    assert "alone 8, by before alone 2: p = 0.11" in text
    assert "+6 of 20 = +30.0 points" in text and "no crash" in text


def test_two_arms_of_one_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"sft": {1, 2, 3}, "roboalign": {2, 3, 4, 5}})
    for runs in ([run], [run, run]):
        found = json.loads(compare_runs(runs, ["sft", "roboalign"], as_json=True))
        assert set(found["arms"]) == {"sft", "roboalign"} and found["recipes_differ_in"] == []
        assert (
            found["pair"]["before"],
            found["pair"]["only_before"],
            found["pair"]["only_after"],
        ) == ("sft", 1, 2)


def test_an_arm_of_each_run(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"sft": {1}, "roboalign": set()})
    two = write_run(tmp_path / "two", {"roboalign": {1, 2}, "sft": set()})
    assert (
        json.loads(compare_runs([one, two], ["sft", "roboalign"], as_json=True))["pair"][
            "only_after"
        ]
        == 1
    )
    assert json.loads(compare_runs([one, two], ["sft"], as_json=True))["pair"]["only_before"] == 1


def test_a_crash_is_no_failure(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"roboalign": {0, 1}}, crashed={5, 6})
    two = write_run(tmp_path / "two", {"roboalign": {0, 1, 5}}, crashed={7})
    text = " ".join(compare_runs([one, two]).split())
    assert "17 pairs" in text and "without 3 in which either simulator crashed" in text
    assert "2/18 = 11.1%" in text and "3/19 = 15.8%" in text
    assert "+0 of 17" in text  # 5 was solved by the second run alone, and crashed in the first


def test_nothing_but_crashes_gives_no_percentage(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"roboalign": set()}, crashed=set(range(20)))
    two = write_run(tmp_path / "two", {"roboalign": {1}})
    text = " ".join(compare_runs([one, two]).split())
    assert "0 pairs" in text and "points" not in text


def test_training_seeds_are_paired_by_number_and_shown_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"roboalign": {0, 1}}, seeds=(0, 1))
    two = write_run(tmp_path / "two", {"roboalign": {0, 1, 2}}, seeds=(0, 1))
    found = json.loads(compare_runs([one, two], as_json=True))["pair"]
    assert found["n"] == 40 and found["by_training_seed"] == {
        seed: {"n": 20, "gained": 1} for seed in "01"
    }
    # both training seeds gain on the same state: drawing states gives a wider interval than drawing episodes
    assert found["by_state"]["high"] > found["difference"]["high"]
    three = write_run(tmp_path / "three", {"roboalign": {0, 1, 2}}, seeds=(1, 2))
    with pytest.raises(
        RoboAlignError,
        match=r"20 episodes are in this one only.*training seeds \[0, 1\] and .*--seed",
    ):
        compare_runs([one, three])
    assert json.loads(compare_runs([one, three], seeds=[1], as_json=True))["pair"]["n"] == 20
    with pytest.raises(RoboAlignError, match="no training seed 2 Fix: choose of 0, 1"):
        compare_runs([one, three], seeds=[2])


WORLD = {"downstream_tasks": TASKS}


@pytest.mark.parametrize(
    ("changed", "key", "values"),
    [
        ({"rollout": {"episodes": 10, "max_steps": 300}}, "rollout.max_steps", "250 and 300"),
        ({"rollout": {"episodes": 10, "replan_every": 4}}, "rollout.replan_every", "8 and 4"),
        (
            {"collect": {**WORLD, "world": {"image_size": 128}}},
            "collect.world.image_size",
            "64 and 128",
        ),
        (
            {"collect": {**WORLD, "world": {"render": "default"}}},
            "collect.world.render",
            "'fast' and 'default'",
        ),
        (
            {"collect": {**WORLD, "world": {"cameras": ("workspace", "corner2")}}},
            "collect.world.cameras",
            "corner2",
        ),
        (
            {
                "collect": {**WORLD, "world": {"cameras": ("corner2",)}},
                "mix": {"camera": "corner2"},
            },
            "mix.camera",
            "'workspace' and 'corner2'",
        ),
    ],
)
def test_every_setting_that_changes_the_meaning_is_named(
    tmp_path: Path, changed: dict, key: str, values: str
) -> None:
    one = write_run(tmp_path / "one", {"roboalign": {1}})
    two = write_run(tmp_path / "two", {"roboalign": {1}}, **changed)
    with pytest.raises(RoboAlignError) as caught:
        compare_runs([one, two])
    assert f"`{key}` is" in str(caught.value) and values in str(caught.value)


def test_all_differences_are_in_one_message(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"roboalign": {1}})
    two = write_run(
        tmp_path / "two",
        {"roboalign": {1}},
        rollout={"episodes": 10, "max_steps": 99, "replan_every": 2},
    )
    with pytest.raises(RoboAlignError, match=r"replan_every.*max_steps|max_steps.*replan_every"):
        compare_runs([one, two])


def test_other_episodes_are_refused(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"roboalign": {1}})
    more = write_run(tmp_path / "more", {"roboalign": {1}}, rollout={"episodes": 12})
    with pytest.raises(
        RoboAlignError,
        match="more roboalign: 4 episodes are in this one only, as door-lock-v3 seed",
    ):
        compare_runs([one, more])
    other = write_run(
        tmp_path / "other", {"roboalign": {1}}, collect={"downstream_tasks": ("door-lock-v3",)}
    )
    with pytest.raises(RoboAlignError, match="10 episodes are in this one only, as door-unlock-v3"):
        compare_runs([one, other])
    path = Path(one) / "seed-0/eval/rollouts/roboalign/episodes.jsonl"
    write_text(path, "".join(path.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(
        RoboAlignError,
        match=r"episodes.jsonl: 3 of 20 episodes are missing.*Fix: roboalign run .* --until eval",
    ):
        compare_runs([one, more])


def test_what_the_recipes_differ_in_is_told(tmp_path: Path) -> None:
    one = write_run(
        tmp_path / "one", {"roboalign": {1}}, versions="torch 2, metaworld 3.1.1, mujoco 3.3.0"
    )
    two = write_run(
        tmp_path / "two",
        {"roboalign": {1}},
        name="other",
        rl={"reward": "decoded"},
        published=True,
        rollout={"episodes": 10, "batch_size": 2},
        versions="torch 2, metaworld 3.1.1, mujoco 3.4.0",
    )
    text = " ".join(compare_runs([one, two]).split())
    assert (
        "rl.reward: paper before, decoded after" in text
        and "batch_size" not in text
        and "name:" not in text
    )
    assert "caution: mujoco 3.3.0 before, 3.4.0 after" in text and "metaworld 3" not in text


def test_on_libero_runs_compare_whatever_their_mllm_was_aligned_on(tmp_path: Path) -> None:
    measured = {
        "benchmark": "libero_goal",
        "downstream_tasks": (
            "libero_goal/turn_on_the_stove",
            "libero_goal/put_the_bowl_on_the_plate",
        ),
        "downstream": {"first_seed": 1000},
    }
    one = write_run(
        tmp_path / "one", {"roboalign": {1}}, collect={**measured, "world": {"image_size": 32}}
    )
    aligned = {
        "align_benchmark": "libero_90",
        "align_tasks": ("libero_90/KITCHEN_SCENE6_close_the_microwave",),
        "align": {"first_seed": 1000},
    }
    two = write_run(
        tmp_path / "two",
        {"roboalign": {1}},
        collect={**measured, **aligned},
        mix={"camera": "agentview"},
    )
    text = " ".join(compare_runs([one, two]).split())
    assert "mix.camera: workspace before, agentview after" in text
    assert "collect.align_benchmark: metaworld before, libero_90 after" in text
    other = write_run(
        tmp_path / "other", {"roboalign": {1}}, collect={**measured, "libero": {"render": "fast"}}
    )
    with pytest.raises(RoboAlignError, match=r"collect\.libero\.render"):
        compare_runs([one, other])


def test_differences_name_leaves() -> None:
    one = Recipe.model_validate({"name": "a"})
    assert recipe_differences(one, one) == []
    assert recipe_differences(one, Recipe.model_validate({"name": "b", "rl": {"kl": 0.5}})) == [
        ("name", "a", "b"),
        ("rl.kl", one.rl.kl, 0.5),
    ]


def test_what_is_no_comparison_is_one_message(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"roboalign": {1}, "sft": {1}})
    with pytest.raises(RoboAlignError, match="compared with itself"):
        compare_runs([run, f"{run}/"], ["sft"])
    with pytest.raises(RoboAlignError, match="two sides"):
        compare_runs([run, run, run])
    with pytest.raises(RoboAlignError, match=r"no run here: recipe.yaml"):
        compare_runs([run, str(tmp_path)])
    with pytest.raises(RoboAlignError, match=r"no arm 'base' Fix: choose of roboalign, sft"):
        compare_runs([run], ["base", "sft"])


def test_published_results_can_be_compared() -> None:
    found = json.loads(
        compare_runs([str(PUBLISHED / "metaworld")], ["sft", "roboalign"], as_json=True)
    )
    summary = json.loads((PUBLISHED / "metaworld" / "summary.json").read_text())
    (known,) = [
        one
        for one in summary["success"]["pairs"]
        if (one["before"], one["after"]) == ("sft", "roboalign")
    ]
    assert found["pair"]["p"] == known["p"] and found["pair"]["n"] == known["n"]
    with pytest.raises(RoboAlignError, match=r"`rollout\.max_steps` is 250 and 150"):
        compare_runs([str(PUBLISHED / "metaworld"), str(PUBLISHED / "quickstart")])


def write_answers(
    folder: Path, arm: str, prefixes: dict[str, float], *, asked: str = "visited", zero: float = 0.5
) -> None:
    """Direct answers to action samples named EPISODE#FRAME; those of a prefix above 0.5 decode."""
    rows = [
        {
            "id": name,
            "episode_id": name.partition("#")[0],
            "mode": "direct",
            "probe": "action",
            "run_seed": 0,
            "prefix": prefix,
            "decoded": prefix > 0.5,
            "well_formed": True,
            "l1": 0.1 if prefix > 0.5 else None,
            "l1_mean_action": 0.4,
            "l1_zero": zero,
        }
        for name, prefix in prefixes.items()
    ]
    path = folder / "seed-0/eval" / asked / arm / "answers.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_answers_are_paired_by_sample_and_drawn_by_episode(tmp_path: Path) -> None:
    """Two episodes: +0.4, +0.4, +0.4 in one, 0 in the other. By hand: the mean is 0.3. A resample of
    two episodes has three of one and one of the other (0.3), only the first (0.4), or only the
    second (0); each of the last two in a quarter of the draws."""
    solved = {"sft-tokens-think": {1}, "roboalign-visited-tokens-think": {1}}
    run = Path(write_run(tmp_path / "run", solved))
    before = {"a#0": 0.2, "a#1": 0.2, "a#2": 0.2, "b#0": 0.2}
    write_answers(run, "sft-tokens-think", before)
    write_answers(run, "roboalign-visited-tokens-think", {**dict.fromkeys(before, 0.6), "b#0": 0.2})
    found = json.loads(compare_runs([str(run)], list(solved), as_json=True))["answers"]
    prefix, l1 = found["visited"]["prefix_direct"], found["visited"]["l1_direct"]
    assert prefix["value"] == pytest.approx(0.3) and prefix["n"] == 4
    assert (prefix["low"], prefix["high"]) == pytest.approx((0.0, 0.4))
    assert l1["value"] == pytest.approx(-0.3 * 3 / 4)  # 0.4, the mean action's, becomes 0.1
    assert found["visited"]["chunks_direct"]["value"] == pytest.approx(0.75)
    assert "no records" in found["tokens"]["none"]
    text = " ".join(compare_runs([str(run)], list(solved)).split())
    assert "Prefix, direct +0.300 +0.000 to +0.400 4" in text
    assert "Chunks, direct, points +75.0" in text and "VQA" not in text
    assert "answers on held-out frames: not compared, no records" in text


def test_answers_to_other_samples_are_not_paired(tmp_path: Path) -> None:
    """Visited states of two runs have the same names, and are those of two policies."""
    arms = {"sft": {1}, "roboalign-visited": {1}}
    one, two = (Path(write_run(tmp_path / name, arms)) for name in ("one", "two"))
    for run, zero in ((one, 0.5), (two, 0.7)):
        write_answers(run, "sft", {"a#0": 0.2, "b#0": 0.2}, zero=zero)
    found = json.loads(compare_runs([str(one), str(two)], ["sft"], as_json=True))["answers"]
    assert "2 samples before, 2 after, 0 of them equal" in found["visited"]["none"]


def test_one_mllm_is_not_compared_with_itself(tmp_path: Path) -> None:
    arms = {"sft": {1}, "sft-tokens-direct": {2}, "sft-tokens-direct-online": {2}}
    run = write_run(tmp_path / "run", arms)
    text = " ".join(compare_runs([run], ["sft", "sft-tokens-direct"]).split())
    assert "both answer with the same MLLM, that of sft" in text and "visited" not in text
    text = " ".join(compare_runs([run], ["sft", "sft-tokens-direct-online"]).split())
    assert "no records of sft and of sft-tokens-direct-online" in text
