"""The keys of the real plan: which settings change which stages, and which stages each arm brings."""

from pathlib import Path
from typing import Any

from roboalign.align.distill import DistillConfig
from roboalign.run.graph import distill_stages, plan_stages
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import by_name, stage_keys


def keys_of(**changes: Any) -> dict[str, str]:
    values = {"name": "x", "backbone": {"source": "train"}, **changes}
    return stage_keys(by_name(plan_stages(Recipe.model_validate(values))))


def changed(**changes: Any) -> set[str]:
    """Stages (without their seed and arm) whose key differs from the default recipe's."""
    before, after = keys_of(), keys_of(**changes)
    assert before.keys() == after.keys()
    short = (name.removeprefix("seed-0/") for name in before if before[name] != after[name])
    return {name.rsplit("/", 1)[0] if name.count("/") else name for name in short}


def test_a_setting_changes_the_stages_below_it_and_no_others() -> None:
    after_rl = {"rl", "extra-sft", "eval/tokens", "head", "eval/rollouts", "report"}
    assert changed(rl={"samples": 7}) == after_rl
    assert changed(sft={"max_steps": 7}) == {"sft", *after_rl}
    assert changed(head={"width": 64}) == {"head", "eval/rollouts", "report"}
    assert changed(rollout={"episodes": 3}) == {"eval/rollouts", "report"}
    assert changed(tokens={"max_actions": 30}) == {"eval/tokens", "report"}
    assert changed(backbone={"source": "train", "pretrain": {"max_steps": 9}}) == {
        "base",
        "random",
        "sft",
        *after_rl,
    }
    everything = changed(collect={"align": {"noise": 0.3}})
    assert everything == {"collect", "tokenizer", "mix", "base", "random", "sft", *after_rl}


def test_rl_settings_leave_other_arms_alone() -> None:
    before, after = keys_of(), keys_of(rl={"samples": 7})
    same = {name for name in before if before[name] == after[name]}
    assert {"seed-0/head/sft", "seed-0/eval/rollouts/base", "seed-0/eval/tokens/random"} <= same
    assert (
        not {"seed-0/head/roboalign", "seed-0/head/blind", "seed-0/eval/rollouts/extra-sft"} & same
    )


def test_what_the_heads_read_counts_where_it_is_not_the_direct_question() -> None:
    """Heads of the time before there was a choice stay done."""
    plan = by_name(plan_stages(Recipe.model_validate({"name": "x"})))
    assert set(plan["seed-0/head/sft"].settings) == {
        *("head", "training", "layer", "final_norm", "layer_dtype", "cameras_as")
    }
    train = {"source": "train"}
    assert changed(backbone={**train, "max_reasoning_tokens": 5}) == set()
    heads = {"head", "eval/rollouts", "report"}
    assert changed(backbone={**train, "reading": "think"}) == heads
    reasoned = [
        keys_of(backbone={**train, "reading": "reasoned", "max_reasoning_tokens": n})
        for n in (5, 6)
    ]
    assert reasoned[0]["seed-0/head/sft"] != reasoned[1]["seed-0/head/sft"]


def test_how_often_something_is_written_and_how_many_processes_run_change_nothing() -> None:
    sft = {
        "log_every": 1,
        "save_every": 3,
        "threads": 1,
        "workers": 2,
        "compile": True,
        "liger": True,
    }
    assert changed(sft=sft, rl={"save_every": 2}, parallel=5) == set()


def test_lora_counts_where_it_is_asked_for() -> None:
    assert changed(rl={"lora": {}}) == changed(rl={"samples": 7})
    assert changed(sft={"lora": {}}) == changed(sft={"max_steps": 7})
    recipe = Recipe(name="x")
    asked = recipe.model_copy(
        update={"distill": DistillConfig(rl={"reward": "answer", "lora": {}})}
    )  # type: ignore[arg-type]
    one, two = (stage_keys(by_name(distill_stages(each))) for each in (recipe, asked))
    assert {name for name in one if one[name] != two[name]} == {
        "distill/rl",
        "distill/sample",
        "distill/traces",
    }


def test_a_folder_from_outside_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    one = keys_of(backbone={"source": str(tmp_path)})
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    two = keys_of(backbone={"source": str(tmp_path)})
    assert one["mix"] == two["mix"] and one["base"] != two["base"]


def test_arms_decide_which_backbones_are_made() -> None:
    def names(*arms: str) -> set[str]:
        return set(keys_of(arms=arms, seeds=(3,)))

    shared = {"collect", "tokenizer", "mix", "base", "report"}
    assert names("base") == shared | {
        f"seed-3/{s}/base" for s in ("eval/tokens", "eval/rollouts", "head")
    }
    blind = names("blind")  # RoboAlign's backbone, no token metrics of its own
    assert {
        "seed-3/sft",
        "seed-3/rl",
        "seed-3/head/blind",
        "seed-3/eval/rollouts/blind",
    } == blind - shared
    assert "seed-3/sft" not in names("random") and "seed-3/random" in names("random")


ALL = (
    "base",
    "language-sft",
    "action-sft",
    "sft",
    "ecot",
    "language-rl",
    "trajectory-rl",
    "roboalign",
)
TRACED = {"weights": {"spatial": 1.0, "planning": 1.0, "trace": 1.0}}


def test_each_baseline_brings_its_own_stages() -> None:
    def needs(*arms: str) -> dict[str, tuple[str, ...]]:
        values = {"name": "x", "backbone": {"source": "train"}, "mix": TRACED, "arms": arms}
        table = by_name(plan_stages(Recipe.model_validate(values)))
        return {
            name: stage.needs
            for name, stage in table.items()
            if "/eval" not in name and "/head" not in name
        }

    assert needs("language-sft")["seed-0/language-sft"] == ("base", "mix-language")
    assert set(needs("action-sft")) == {
        "collect",
        "tokenizer",
        "mix",
        "base",
        "mix-action",
        "seed-0/action-sft",
        "report",
    }
    for arm in ("ecot", "language-rl", "trajectory-rl"):
        found = needs(arm)
        assert found[f"seed-0/{arm}"] == ("seed-0/sft",) and "seed-0/rl" not in found
        assert not {"mix-action", "mix-language"} & set(found)


def test_counts_change_the_mixtures_that_they_are_about() -> None:
    def keys(counts: str) -> dict[str, str]:
        return keys_of(arms=ALL, mix=TRACED, baselines={"counts": counts})

    before, after = keys("matched"), keys("paper")
    differ = {name for name in before if before[name] != after[name]}
    own = {
        f"seed-0/{stage}{arm}"
        for arm in ("language-sft", "action-sft")
        for stage in ("", "head/", "eval/tokens/", "eval/rollouts/")
    }
    assert differ == {"mix-language", "mix-action", "report", *own}


def test_sft_has_every_core_only_where_nothing_runs_beside_it() -> None:
    def exclusive(*arms: str) -> bool:
        values = {"name": "x", "backbone": {"source": "train"}, "arms": arms}
        return by_name(plan_stages(Recipe.model_validate(values)))["seed-0/sft"].exclusive

    assert exclusive("sft", "roboalign")
    assert (
        not exclusive("sft", "action-sft")
        and not exclusive("base", "sft")
        and not exclusive("sft", "random")
    )
