"""Recipes: every shipped one loads, each fault is one message with the key and the fix, overrides, the round trip."""

from pathlib import Path

import pytest
import yaml
from recipe_faults import fault

from roboalign.core import machine
from roboalign.core.errors import RoboAlignError
from roboalign.run.load import dump_recipe, load_recipe
from roboalign.run.recipe import Recipe
from roboalign.sim.metaworld.instructions import HELD_OUT, TRAIN
from roboalign.sim.registry import FIRST_EVALUATION_SEED

FOLDER = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(FOLDER.glob("*.yaml"))
TO_ALIGN = (
    "collect: {align_benchmark: libero_90, align: {first_seed: 1000}, downstream: {first_seed: 1000}, "
    "align_tasks: [libero_90/KITCHEN_SCENE6_close_the_microwave]"
)
LIBERO = "collect: {benchmark: libero_goal, downstream_tasks: all, downstream: {first_seed: 1000}"

PAPER = sorted((FOLDER / "paper").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"smoke.yaml", "quickstart.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_settings_that_a_paper_recipe_names_in_its_comments_load(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    named = [word for line in lines for word in line.split("--set ")[1:]]
    overrides = [word.strip(" \\").strip("'") for word in named]
    assert len(overrides) > 3
    recipe = load_recipe(path, tuple(overrides))
    assert recipe.mixture and recipe.collect.benchmark.startswith("libero_")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    assert "warmup_ratio" in resolved.read_text()  # defaults are written out


def test_the_baselines_are_aligned_on_the_quickstarts_demonstrations() -> None:
    quickstart, baselines = (
        load_recipe(FOLDER / f"{name}.yaml") for name in ("quickstart", "baselines")
    )
    for group in ("seeds", "tokenizer", "tokens"):
        assert getattr(baselines, group) == getattr(quickstart, group), group
    for group in ("align_benchmark", "align_tasks", "align"):
        assert getattr(baselines.collect, group) == getattr(quickstart.collect, group), group
    assert baselines.mix.conversations == quickstart.mix.conversations
    assert len(baselines.arms) == 8 and baselines.baselines.counts == "matched"


def test_the_default_tasks_are_ml45s_and_disjoint() -> None:
    recipe = Recipe(name="x")
    assert recipe.collect.align_names() == TRAIN and recipe.collect.downstream_tasks == HELD_OUT
    assert not set(TRAIN) & set(HELD_OUT)


@pytest.mark.parametrize(
    ("text", "key", "fix"),
    [
        ("name: x\nsft: {max_step: 3}", "sft.max_step", "did you mean `max_steps`?"),
        ("name: x\nsfft: {}", "sfft", "did you mean `sft`?"),
        ("name: x\ncollect: {align: {noize: 0.1}}", "collect.align.noize", "did you mean `noise`?"),
        (
            "name: x\ntokenizer: {zzz: 1}",
            "tokenizer.zzz",
            "known keys here: path, horizon, scale, vocab_size, statistics, clip",
        ),
        ("name: x\ncollect: {wold: {}}", "collect.wold", "did you mean `world`?"),
        (
            "name: x\ncollect: {libero: {rendr: fast}}",
            "collect.libero.rendr",
            "did you mean `render`?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(
    tmp_path: Path, text: str, key: str, fix: str
) -> None:
    error = fault(tmp_path, text)
    assert error.problem == f"unknown key `{key}`" and error.fix == fix


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "name: x\nsft: {max_steps: many}",
            ["`sft.max_steps`", "integer", "'many'", "--set sft.max_steps="],
        ),
        ("name: x\ncollect: {align_tasks: 3}", ["`collect.align_tasks`", "got 3"]),
        ("name: x\nseeds: [a]", ["`seeds.0`", "'a'"]),
        (
            "name: x\ncollect: {benchmark: libero_long}",
            [
                "`collect.benchmark`",
                "`libero_long` not found. Available: metaworld, libero, libero_spatial,",
            ],
        ),
        (
            "name: x\ncollect: {world: {image_size: big}}",
            ["`collect.world.image_size`", "integer", "'big'"],
        ),
        ("name: x\narms: [sft, robo]", ["`arms.1`", "Available: base", "'robo'"]),
        ("name: X Y", ["`name`", "pattern"]),
        ("seeds: [0]", ["`name`", "Field required"]),
        ("name: x\nmix: {rl_share: 0.01}", ["`mix.rl_share`", "less than 0.01", "got 0.01"]),
        ("name: x\nseeds: []", ["`seeds`", "at least 1 item"]),
        (
            "name: x\nsft: {batch_size: 0}\nrl: {samples: 1}",
            ["`sft.batch_size`", "1 more faults after this one"],
        ),
        ("name: x\nrl: {prompts_per_rollout: 10, prompts_per_update: 4}", ["`rl`", "no multiple"]),
    ],
)
def test_a_wrong_value_is_named_with_what_was_given(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    message = str(fault(tmp_path, text))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "collect: {align_tasks: [reach-v3, door-lock-v3], downstream_tasks: [door-lock-v3]}",
            ["door-lock-v3", "align_tasks", "downstream_tasks"],
        ),
        ("collect: {downstream_tasks: [reach-v3]}", ["reach-v3", "remove them from one"]),
        ("collect: {downstream_tasks: [fly-v3]}", ["unknown tasks ['fly-v3']", "assembly-v3"]),
        ("collect: {downstream_tasks: []}", ["downstream_tasks is empty"]),
        (
            "collect: {downstream_tasks: [door-lock-v3, door-lock-v3]}",
            ["downstream_tasks names something twice"],
        ),
        (
            f"collect: {{downstream: {{first_seed: {FIRST_EVALUATION_SEED}}}}}",
            ["evaluation", str(FIRST_EVALUATION_SEED)],
        ),
        # 20 episodes of up to 5 seeds each: the last seed would be FIRST_EVALUATION_SEED itself
        (
            f"collect: {{align: {{first_seed: {FIRST_EVALUATION_SEED - 99}}}}}",
            ["evaluation", str(FIRST_EVALUATION_SEED)],
        ),
        (
            "collect: {align: {first_seed: -1}}",
            ["`collect.align.first_seed`", "greater than or equal to 0, got -1"],
        ),
        ("collect: {downstream_tasks: all}", ["metaworld has no set of tasks `all`", "`ml45`"]),
        ("collect: {head_cameras: [wrist]}", ["head_cameras ['wrist']", "workspace"]),
        (
            f"{LIBERO.replace('1000', '0')}}}",
            ["downstream.first_seed is 0", "seeds from 1000 to 999999"],
        ),
        (
            f"{LIBERO.replace('all', '[reach-v3]')}}}",
            ["unknown tasks ['reach-v3']", "like libero_goal/open_the_middle"],
        ),
        (f"{LIBERO}, head_cameras: [corner2]}}", ["head_cameras ['corner2']", "wrist"]),
        (
            "rl: {prompts_per_rollout: 24, prompts_per_update: 24}",
            ["rl.prompts_per_update 24", "rl.micro_batch_size 16"],
        ),
        (
            "arms: [sft, roboalign, roboalign-visited]\nvisited: {max_steps: 501}",
            ["visited.max_steps", "500 steps, not 501"],
        ),
        (
            f"{LIBERO}}}\nrollout: {{max_steps: 99}}",
            ["rollout.max_steps", "collect.libero.max_steps"],
        ),
        (
            f"{LIBERO}}}\nrollout: {{episodes: 51}}",
            ["rollout.episodes is 51", "50 evaluation episodes"],
        ),
        (f"{LIBERO}}}\ntokenizer: {{horizon: 4}}", ["replan_every 5", "tokenizer.horizon 4"]),
        (
            f"{TO_ALIGN.replace('[libero_90/KITCHEN_SCENE6_close_the_microwave]', 'ml45')}}}",
            ["libero_90 has no set of tasks `ml45`", "`all`"],
        ),
        (
            f"{TO_ALIGN.replace('align: {first_seed: 1000}', 'align: {first_seed: 0}')}}}",
            ["align.first_seed is 0", "seeds from 1000 to 999999"],
        ),
        (
            f"{TO_ALIGN}, benchmark: libero_90, downstream_tasks: all}}",
            ["KITCHEN_SCENE6_close_the_microwave'] are in align_tasks and in downstream_tasks"],
        ),
        (
            f"{TO_ALIGN}, benchmark: libero_90, downstream_tasks: [libero_90/KITCHEN_SCENE6_close_the_microwave]}}",
            [
                "['libero_90/KITCHEN_SCENE6_close_the_microwave'] are in align_tasks and in downstream_tasks"
            ],
        ),
        (f"{TO_ALIGN}}}", ["mix.camera 'workspace'", "collect.libero.cameras"]),
        (f"{TO_ALIGN}}}\nmix: {{camera: wrist}}", ["`wrist` moves", "`agentview`"]),
        ("seeds: [1, 1]", ["seeds names something twice"]),
        ("seeds: [-1]", ["`seeds.0`", "equal to 0", "--set seeds=VALUE"]),
        ("arms: []", ["arms is empty"]),
        ("arms: [sft, sft]", ["arms names something twice"]),
        ("mix: {camera: corner2}", ["mix.camera 'corner2'", "collect.world.cameras"]),
        ("rl: {reward: trace}", ["rl.reward `trace`", "`paper` or `decoded`"]),
        ("arms: [sft, trajectory-rl]", ["trajectory-rl", "`trace`", "mix.weights"]),
        (
            "arms: [language-rl]\nmix: {weights: {spatial: 1.0}}",
            ["language-rl", "`movement_choice`", "`planning`"],
        ),
        ("rl: {lora: {dropout: 0.1}}", ["lora.dropout is for SFT"]),
        (
            "backbone: {source: train, pretrain: {lora: {rank: 4}}}",
            ["remove backbone.pretrain.lora"],
        ),
        ("backbone: {source: train, layer: 9}", ["backbone.layer 9", "backbone.tiny.depth"]),
        ("backbone: {connector: {}}", ["connector", "source is `builtin`"]),
        (
            "backbone: {source: /m, connector: {freeze_vision: false}}",
            ["backbone.connector.freeze_vision", "True"],
        ),
    ],
)
def test_values_that_contradict_each_other(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = str(fault(tmp_path, f"name: x\n{text}"))
    assert all(part in message for part in parts), message
    assert "``" not in message


def test_the_last_seed_below_the_evaluation_range_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(f"name: x\ncollect: {{align: {{first_seed: {FIRST_EVALUATION_SEED - 100}}}}}")
    assert load_recipe(path).collect.align.first_seed == FIRST_EVALUATION_SEED - 100


def test_how_many_stages_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 6)
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    assert machine.side_by_side(0) == 6 and machine.side_by_side(3) == 3
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    assert machine.side_by_side(0) == 1 and machine.side_by_side(3) == 3


def test_cores_are_those_of_this_process() -> None:
    assert machine.cores() >= 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sft: {learning_rate: .nan}", ["`sft.learning_rate`", "finite number"]),
        ("sft: {learning_rate: .inf}", ["`sft.learning_rate`", "finite number"]),
        ("hardware: {timeout: .inf}", ["`hardware.timeout`", "finite number"]),
        ("sft: {max_steps: true}", ["`sft.max_steps`", "true and false are no numbers"]),
        ("seeds: [no]", ["`seeds`", "true and false are no numbers"]),
        ("mix: {weights: {spatial: yes}}", ["`mix.weights`", "true and false are no numbers"]),
    ],
)
def test_numbers_are_finite_and_true_is_none(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = str(fault(tmp_path, f"name: x\n{text}"))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("rollout.replan_every=0", ["`rollout.replan_every`", "equal to 1, got 0"]),
        (
            "rollout.replan_every=100",
            ["rollout.replan_every 100 is above tokenizer.horizon 8"],
        ),
        ("rollout.max_steps=0", ["`rollout.max_steps`", "equal to 1, got 0"]),
        ("rollout.batch_size=-1", ["`rollout.batch_size`", "equal to 1, got -1"]),
        ("collect.align.noise=.nan", ["`collect.align.noise`", "finite", "got nan"]),
        ("collect.downstream.noise=-1", ["`collect.downstream.noise`", "equal to 0"]),
        ("collect.align.noise_memory=1", ["`collect.align.noise_memory`", "less than 1"]),
        ("collect.align.episodes_per_task=0", ["`collect.align.episodes_per_task`", "equal to 1"]),
        ("collect.align.attempts=-1", ["`collect.align.attempts`", "equal to 1"]),
        ("collect.align.max_steps=0", ["`collect.align.max_steps`", "equal to 1"]),
        ("collect.align.steps_after_success=-1", ["`collect.align.steps_after_success`"]),
        ("collect.world.image_size=0", ["`collect.world.image_size`", "equal to 8"]),
        ("mix.weights.general=.nan", ["`mix.weights.general`", "finite", "got nan"]),
        ("mix.weights.general=-1", ["`mix.weights.general`", "equal to 0, got -1"]),
        ("seeds=[4294967296]", ["`seeds`", "at most 4294967295, got [4294967296]"]),
        ("sft.seed=4294967296", ["`sft.seed`", "at most 4294967295"]),
        ("sft.epochs=.inf", ["`sft.epochs`", "finite"]),
        ("sft.epochs=1.0e+7", ["`sft.epochs`", "equal to 1000000"]),
        (f"sft.max_steps={10**30}", ["`sft.max_steps`", "at most 4294967295"]),
        ("sft.max_grad_norm=.inf", ["`sft.max_grad_norm`", "finite", "got inf"]),
        ("sft.max_grad_norm=1.0e+31", ["`sft.max_grad_norm`", "at most 1e+30"]),
        ("rl.dual_clip=.inf", ["`rl.dual_clip`", "finite"]),
        ("rl.temperature=1.0e-300", ["`rl.temperature`", "equal to 0.001"]),
        ("tokenizer.vocab_size=1000000000", ["`tokenizer.vocab_size`", "equal to 1000000"]),
        ("tokenizer.scale=1.0e+300", ["`tokenizer.scale`", "at most 1e+30"]),
        (f"backbone.tiny.width={10**30}", ["`backbone.tiny.width`", "at most 4294967295"]),
        ("backbone.tiny.depth=100000", ["`backbone.tiny.depth`", "equal to 1000"]),
        ("head.layers=100000", ["`head.layers`", "equal to 1000"]),
        ("hardware.timeout=1.0e+18", ["`hardware.timeout`", "10000000"]),
    ],
)
def test_a_number_without_sense_is_refused_when_the_recipe_is_read(
    tmp_path: Path, setting: str, parts: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\n")
    with pytest.raises(RoboAlignError) as caught:
        load_recipe(path, (setting,))
    message = str(caught.value)
    assert all(part in message for part in parts), message


def test_the_last_number_with_sense_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\n")
    recipe = load_recipe(
        path, ("rollout.replan_every=8", "seeds=[4294967295]", "rollout.max_steps=1")
    )
    assert (recipe.rollout.replan_every, recipe.seeds) == (8, (2**32 - 1,))


def test_a_cut_recipe_of_a_run_is_refused_and_another_file_has_its_defaults(tmp_path: Path) -> None:
    """A run writes out every key: with one lost, its default would be another run's without a word."""
    recipe = Recipe.model_validate({"name": "mine", "seeds": (3,), "rollout": {"episodes": 7}})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    (tmp_path / "collect").mkdir()
    (tmp_path / "collect" / "started.json").write_text("{}")
    assert load_recipe(path) == recipe
    whole = yaml.safe_load(path.read_text())
    del whole["rollout"]["episodes"]
    path.write_text(yaml.safe_dump(whole))
    with pytest.raises(RoboAlignError, match=r"recipe\.yaml: `rollout\.episodes` is missing"):
        load_recipe(path)
    (tmp_path / "collect" / "started.json").unlink()
    assert (
        load_recipe(path).rollout.episodes == Recipe.model_validate({"name": "x"}).rollout.episodes
    )


def test_models_of_billions_are_asked_in_the_style_paper_and_tiny_ones_in_the_other() -> None:
    styles = {path: load_recipe(path).prompts for path in (*SHIPPED, *PAPER)}
    assert len(styles) > 5
    for path, style in styles.items():
        assert style == ("paper" if path.parent.name == "paper" else "labelled"), path


def test_labels_open_no_answer_in_the_style_paper() -> None:
    with pytest.raises(ValueError, match=r"set backbone\.action_start to mean"):
        Recipe.model_validate(
            {"name": "x", "prompts": "paper", "backbone": {"action_start": "labels"}}
        )
