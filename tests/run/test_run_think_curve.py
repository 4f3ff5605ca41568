"""`think-curve` and `causal` on the toy benchmark and an untrained model: records, resuming, sums."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stage_run import recipe
from synthetic_tokens import SPACE, build_parts
from toy_on_path import PACKAGE

from roboalign.actions.hold import HoldRule
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json, write_text
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.mllm.load import load_mllm
from roboalign.report.think_curve import causal_text, curve_lines, curve_text, draw_curve
from roboalign.run import causal as causal_module
from roboalign.run import think_curve as curve_module
from roboalign.run import variants
from roboalign.run.causal import CausalSettings, causal
from roboalign.run.think_curve import ThinkCurveSettings, think_curve, variants_of
from roboalign.run.variants import Ground, choose_frames, find_ground
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch
from roboalign.vla.token_policy import TokenPolicy, TokenView
from roboalign.vla.token_writer import TokenPolicyConfig

SMALL = ThinkCurveSettings(
    frames=3, answers=(1, 2), choose=("median", "likelihood"), reasonings=(0, 6), oracle=2
)
EPISODES = [("toy/touch-red", 0), ("toy/touch-blue", 0)]


def episode(number: int, task: str, instruction: str) -> Episode:
    rng = np.random.default_rng(number)
    images = [encode_png(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(4)]
    return Episode(
        episode_id=f"demo-{number}",
        task=task,
        instruction=instruction,
        fps=10.0,
        actions=rng.uniform(-1, 1, (4, 4)).astype(np.float32),
        state=np.zeros((4, 4), np.float32),
        images={"top": images},
        cameras={"top": Camera("top", 64, 64)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token policy that thinks, with at most 4 tokens of reasoning."""
    parts = build_parts(tmp_path_factory.mktemp("tokens") / "model")
    policy = TokenPolicy(
        load_mllm(parts["folder"]),
        parts["fast"],
        parts["stats"],
        HoldRule(space=SPACE),
        TokenView(mode="think", cameras=("top",), prompts="labelled"),
        TokenPolicyConfig(max_reasoning_tokens=4, max_block_tokens=5),
    )
    made = tmp_path_factory.mktemp("run") / "arm" / "policy"
    policy.save(made)
    return made


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Measure on toys, in this process; returns the list of episodes that were run."""
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    from toy_benchmark.spec import ToyConfig
    from toy_benchmark.world import Toy

    tasks = (
        ("toy/touch-red", "Touch the red square."),
        ("toy/touch-blue", "Touch the blue square."),
    )
    demos = [episode(n, *tasks[n % 2]) for n in range(6)]
    config = RolloutConfig(replan_every=2, max_steps=4, batch_size=3)
    ground = Ground(Toy(ToyConfig()), EPISODES, config, demos[:4], demos[4:])
    for module in (curve_module, causal_module):
        monkeypatch.setattr(module, "find_ground", lambda *given: ground)
    ran: list[tuple[str, int]] = []

    def in_process(
        make_act: Any, benchmark: Any, episodes: Any, config: Any, workers: int, on_result: Any
    ) -> None:
        pool = EnvironmentPool(benchmark, 4)
        for result in rollout_batch(make_act(), pool, episodes, config):
            ran.append((result.task, result.seed))
            on_result(result)

    monkeypatch.setattr(variants, "evaluate_parallel", in_process)
    return ran


def run_curve(folder: Path, out: Path, settings: ThinkCurveSettings = SMALL) -> dict[str, Any]:
    return think_curve(out.parent, recipe(), folder, settings, out)


def test_a_curve_has_every_point_and_its_records(
    folder: Path, measured: Any, tmp_path: Path
) -> None:
    found = run_curve(folder, tmp_path / "out")
    names = [(one["family"], one["size"]) for one in found["points"]]
    chosen = [("median", 2), ("likelihood", 2), ("oracle", 1), ("oracle", 2)]
    assert names == [("itself", 1), ("reasoning", 0), ("reasoning", 6), *chosen]
    assert len(measured) == 7 * 2  # itself, 2 reasonings, 2 choices and 2 draws
    frames = read_jsonl(tmp_path / "out" / "frames.jsonl")
    assert len(frames) == 7 * 3
    for one in found["points"]:
        name = "itself" if one["family"] == "itself" else f"{one['family']} {one['size']}"
        rows = [row for row in frames if row["variant"] == name]
        seconds = [row["seconds"] for row in rows]
        assert one["l1"]["value"] == pytest.approx(np.mean([row["l1"] for row in rows]))
        assert one["p95"] == pytest.approx(np.quantile(seconds, 0.95))
        assert one["success"]["n"] == 2 and one["crashes"] == 0
    points = dict(zip(names, found["points"]))
    assert "l1_difference" not in points["itself", 1]
    for name, one in points.items():
        if name != ("itself", 1):
            change = one["l1"]["value"] - points["itself", 1]["l1"]["value"]
            assert one["l1_difference"]["value"] == pytest.approx(change)
    tokens = {name: one["tokens"] for name, one in points.items()}
    # Each closed reasoning costs what is written first (4 + 5 or 6 + 5) and a block after it (5).
    assert tokens["itself", 1] == 14 and tokens["reasoning", 6] == 16
    assert tokens["reasoning", 0] == 5 and 24 <= tokens["median", 2] <= 28  # one may end early
    assert points["oracle", 2]["l1"]["value"] <= points["oracle", 1]["l1"]["value"] + 1e-9
    text = curve_text(found)
    words = " ".join(text.split())
    assert "median of 2" in words and "oracle of 2" in words and "reasoning" in words
    assert max(map(len, text.splitlines())) <= 80
    draw_curve(found, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > 1000 and len(set(image.convert("L").get_flattened_data())) > 50


def test_what_is_measured_is_not_measured_again(
    folder: Path, measured: list[Any], tmp_path: Path
) -> None:
    whole = run_curve(folder, tmp_path / "whole")
    out = tmp_path / "out"
    run_curve(folder, out)
    for name, cut in (("episodes.jsonl", 5), ("frames.jsonl", 4)):
        lines = (out / name).read_text().splitlines()
        write_text(out / name, "\n".join([*lines[:-cut], lines[-1][:9]]))  # killed in a line
    measured.clear()
    again = run_curve(folder, out)
    assert len(measured) == 5

    def without_time(found: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in one.items() if name not in ("seconds", "p95")}
            for one in found["points"]
        ]

    assert without_time(again) == without_time(whole) == without_time(run_curve(folder, out))
    assert len(measured) == 5
    more = SMALL.model_copy(update={"answers": (1, 2, 3)})
    assert len(run_curve(folder, out, more)["points"]) == 9 and len(measured) == 5 + 2 * 2
    other = SMALL.model_copy(update={"temperature": 1.0})
    with pytest.raises(RoboAlignError, match="measurements with another temperature"):
        run_curve(folder, out, other)


def test_the_oracle_solves_what_any_of_its_draws_solves() -> None:
    def rows(*outcomes: Any) -> list[dict[str, Any]]:
        return [
            {
                "task": "t",
                "seed": seed,
                "success": one is True,
                "crash": None if one != "x" else "x",
            }
            for seed, one in enumerate(outcomes)
        ]

    closed = {
        "draw 0": rows(False, True, "x", "x", False),
        "draw 1": rows(True, False, True, False, False),
    }
    one, two = (curve_module._best_of(closed, size) for size in (1, 2))
    assert [row["success"] for row in one] == [False, True, False, False, False]
    assert [row["success"] for row in two] == [True, True, True, False, False]
    assert [row["crash"] for row in two] == [None, None, None, "x", None]


def test_lines_of_the_plot_share_the_single_answer() -> None:
    points = [
        {"family": family, "size": size}
        for family, size in (("itself", 1), ("reasoning", 0), ("median", 4), ("oracle", 1))
    ]
    lines = curve_lines({"points": points, "reasoning": 128})
    assert [one["size"] for one in lines["median of N"]] == [1, 4]
    assert lines["median of N"][0]["family"] == "oracle"
    assert [one["size"] for one in lines["tokens of reasoning"]] == [0, 128]
    assert [one["size"] for one in lines["oracle of N"]] == [1]


def test_the_policys_own_reasoning_is_not_measured_twice(folder: Path) -> None:
    settings = SMALL.model_copy(update={"reasonings": (0, 4, 9)})
    names = [one.name for one in variants_of(variants.load_any(folder), settings)]
    assert "reasoning 0" in names and "reasoning 4" not in names and "reasoning 9" in names


def test_conditions_are_paired_with_the_kept_reasoning(
    folder: Path, measured: list[Any], tmp_path: Path
) -> None:
    settings = CausalSettings(frames=3, donors=6)
    out = tmp_path / "out"
    found = causal(tmp_path, recipe(), folder, settings, out)
    names = ["kept", "emptied", "shuffled", "other-frame", "other-instruction"]
    assert [one["condition"] for one in found["conditions"]] == names
    assert len(measured) == 5 * 2 and found["donors"] == 6
    kept, emptied = found["conditions"][:2]
    assert kept["changed"] == 0 and kept["frames_changed"] == 0 and "p" not in kept
    assert emptied["changed"] > 0 and emptied["frames"] == 3
    change = emptied["l1"]["value"] - kept["l1"]["value"]
    assert emptied["l1_difference"]["value"] == pytest.approx(change)
    assert all(0 <= one["p"] <= one["p_holm"] <= 1 for one in found["conditions"][1:])
    donors = read_json(out / "donors.json")
    assert {one["episode_id"] for one in donors} <= {f"demo-{n}" for n in range(4)}
    measured.clear()
    assert causal(tmp_path, recipe(), folder, settings, out) == found and not measured
    assert max(map(len, causal_text(found).splitlines())) <= 80


def test_reasonings_of_other_demonstrations_are_refused(
    folder: Path, measured: list[Any], tmp_path: Path
) -> None:
    settings, out = CausalSettings(frames=1, donors=4), tmp_path / "out"
    causal(tmp_path, recipe(), folder, settings, out)
    donors = read_json(out / "donors.json")
    write_json(out / "donors.json", [{**one, "episode_id": "of another task"} for one in donors])
    with pytest.raises(RoboAlignError, match="reasonings of other demonstrations"):
        causal(tmp_path, recipe(), folder, settings, out)


def test_frames_are_evenly_spaced_over_the_episodes() -> None:
    demos = [episode(n, "t", "go") for n in range(2)]
    assert [(one.episode_id, t) for one, t in choose_frames(demos, 3)] == [
        ("demo-0", 0),
        ("demo-1", 0),
        ("demo-1", 3),
    ]
    assert len(choose_frames(demos, 99)) == 8
    with pytest.raises(RoboAlignError, match="no demonstration was held out"):
        choose_frames([], 3)


def test_a_token_policy_is_measured_on_alignment_tasks_at_unseen_states(
    run_dir: Path, folder: Path
) -> None:
    policy, settings = variants.load_any(folder), recipe()
    names = settings.collect.align_names()
    ground = find_ground(run_dir, settings, policy, names[:1], 3)
    assert [task for task, _ in ground.episodes] == [names[0]] * 3
    assert {seed for _, seed in ground.episodes}.isdisjoint(range(1_000_000))
    twice = find_ground(run_dir, settings, policy, (names[0], names[0]), 3)
    assert twice.episodes == ground.episodes, "a task named twice would count each episode twice"
    downstream = settings.collect.downstream_names()[0]
    there = find_ground(run_dir, settings, policy, (downstream,), 2)
    assert {task for task, _ in there.episodes} == {downstream}
    with pytest.raises(RoboAlignError, match="'nothing' is none of the align tasks"):
        find_ground(run_dir, settings, policy, ("nothing",), 1)
    _: Callable[..., Ground] = find_ground
