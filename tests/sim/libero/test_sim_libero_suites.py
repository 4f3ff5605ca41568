"""LIBERO: its suites, their tasks and instructions, and the presets."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero.libero", reason="LIBERO is optional: requirements-libero.lock")

from roboalign.core.errors import RoboAlignError
from roboalign.sim.libero.protocol import LIBERO_PRESETS, LiberoConfig, departures, preset
from roboalign.sim.libero.suites import (
    SUITES,
    bddl_file,
    find_task,
    load_library,
    stored_states,
    suite_tasks,
)
from roboalign.sim.libero.task_names import PERTURBED_SUITES, WHOLE_SUITES
from roboalign.sim.registry import find_benchmark
from roboalign.sim.rollout import RolloutConfig

SOUP = "libero_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket"
BOWL = "libero_spatial/pick_up_the_black_bowl_next_to_the_plate_and_place_it_on_the_plate"
SMALL = LiberoConfig(render="fast", render_size=64, image_size=32)


def test_suites_have_their_tasks_and_stored_states() -> None:
    assert [len(suite_tasks(suite)) for suite in SUITES] == [10, 10, 10, 10, 90]
    for name in (SOUP, BOWL):
        assert stored_states(name).shape[0] == 50
    assert find_task(SOUP).instruction == "pick up the alphabet soup and place it in the basket"
    assert (
        find_task(SOUP, "bddl").instruction == "pick the alphabet soup and place it in the basket"
    )
    long = suite_tasks("libero_10")[0]
    assert "SCENE" in long.name and "scene" not in long.instruction.lower()
    with pytest.raises(RoboAlignError, match="no task is called"):
        find_task("libero_object/fly")
    with pytest.raises(RoboAlignError, match="unknown suite"):
        suite_tasks("libero_11")


def test_the_whole_of_libero_is_its_four_suites_each_with_its_own_step_limit() -> None:
    whole = find_benchmark("libero")
    names = whole.task_names()
    assert len(names) == 40 and {name.partition("/")[0] for name in names} == {*WHOLE_SUITES}
    assert whole.task_sets()["libero_goal"] == find_benchmark("libero_goal").task_names()
    assert whole.rollout(preset("openpi"), RolloutConfig()).max_steps == 520
    benchmark = whole.make(preset("openpi"))
    assert [task.name for task in benchmark.tasks()] == list(names)
    environment = benchmark.make(SOUP)
    assert environment.max_steps == 280  # of libero_object, where 520 is libero_10's
    environment.close()
    with pytest.raises(RoboAlignError, match="is no task of libero"):
        benchmark.make("libero_90/KITCHEN_SCENE3_turn_on_the_stove")


@pytest.mark.parametrize("name", sorted(PERTURBED_SUITES))
def test_perturbed_suites_change_what_they_say(name: str) -> None:
    suite, ending = PERTURBED_SUITES[name]
    tasks, before = suite_tasks(name), suite_tasks(suite)
    assert len(tasks) == len(before) == 10
    reworded = [a.instruction != b.instruction for a, b in zip(tasks, before)]
    assert all(reworded) if ending in ("lan", "task") else not any(reworded)
    for task in tasks:
        assert bddl_file(task.name).is_file() and len(stored_states(task.name)) == 50
    assert find_benchmark(name).task_names() == tuple(task.name for task in tasks)


def test_in_a_swapped_scene_the_two_things_have_changed_places() -> None:
    """The task's file exchanges the regions of soup and butter; the stored states do so too."""
    places = {}
    for suite in ("libero_object", "libero_object_swap"):
        benchmark = find_benchmark(suite).make(preset("openpi"))
        environment = benchmark.make(f"{suite}/{SOUP.partition('/')[2]}")
        assert environment.max_steps == 280
        environment.reset(0)
        data = environment.simulation.sim.data
        places[suite] = [
            data.get_body_xpos(f"{body}_1_main")[:2] for body in ("alphabet_soup", "butter")
        ]
        environment.close()
    soup, butter = places["libero_object"]
    soup_swapped, butter_swapped = places["libero_object_swap"]
    assert np.linalg.norm(soup - butter) > 0.1
    assert np.linalg.norm(soup_swapped - butter) < 0.05
    assert np.linalg.norm(butter_swapped - soup) < 0.05


def test_a_perturbed_suite_measures_and_says_so_but_has_no_demonstrations() -> None:
    spec = find_benchmark("libero_goal_lan")
    protocol = spec.protocol(preset("openpi"))
    assert protocol["perturbed"] == {"suite": "libero_goal", "changed": "instruction"}
    assert protocol["instructions_from"] == "bddl"
    assert (
        find_benchmark("libero_goal_swap").protocol(preset("openpi"))["instructions_from"] == "name"
    )
    with pytest.raises(
        RoboAlignError, match=r"no demonstrations Fix: train on libero_goal, .*eval"
    ):
        spec.demonstrated(preset("openpi"))


def test_instructions_are_those_of_the_library() -> None:
    load_library()
    from libero.libero.benchmark import get_benchmark

    for suite in SUITES:
        theirs = get_benchmark(suite)()
        assert [task.instruction for task in suite_tasks(suite)] == [
            theirs.get_task(index).language for index in range(theirs.get_num_tasks())
        ]


def test_stored_states_that_are_objects_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "init_files" / "libero_object" / "evil.pruned_init.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, states=np.array([{"a": 1}], dtype=object))
    monkeypatch.setattr("roboalign.sim.libero.suites.load_library", lambda: tmp_path)
    with pytest.raises(RoboAlignError, match="cannot be read"):
        stored_states("libero_object/evil")
    np.savez(path, states=np.zeros((3, 5)))
    with pytest.raises(RoboAlignError, match="not 50 rows"):
        stored_states("libero_object/evil")


def test_presets() -> None:
    openpi = preset("openpi")
    steps = openpi.max_steps
    assert (steps.libero_spatial, steps.libero_object, steps.libero_goal, steps.libero_10) == (
        220,
        280,
        300,
        520,
    )
    assert (openpi.settle_steps, openpi.image_size, openpi.replan_every, openpi.seed) == (
        10,
        224,
        5,
        7,
    )
    assert preset("rlinf").settle_steps == 15
    assert (
        preset("lerobot").max_steps.libero_spatial == 280 and preset("lerobot").render_size == 360
    )
    assert set(preset("simplevla-rl").max_steps.model_dump().values()) == {512}
    gr00t = preset("gr00t")
    assert (
        gr00t.max_steps.libero_goal,
        gr00t.max_steps.libero_10,
        gr00t.replan_every,
        gr00t.image_size,
    ) == (600, 1000, 1, 256)
    for name, config in LIBERO_PRESETS.items():
        differing = {key for key, value in config if value != getattr(openpi, key)} - {
            "preset",
            "assumed",
        }
        assert not differing & set(config.assumed), f"{name}: a value that differs is not assumed"
    with pytest.raises(RoboAlignError, match="unknown LIBERO preset"):
        preset("mine")


def test_a_preset_is_what_is_not_given() -> None:
    for name, config in LIBERO_PRESETS.items():
        assert LiberoConfig.model_validate({"preset": name}) == config and not departures(config)
        assert LiberoConfig.model_validate(config.model_dump()) == config, (
            "what a run wrote down reads as it was"
        )
    own = LiberoConfig.model_validate(
        {"preset": "lerobot", "image_size": 64, "max_steps": {"libero_goal": 9}}
    )
    assert (
        own.render_size == 360
        and own.max_steps.libero_spatial == 280
        and own.max_steps.libero_goal == 9
    )
    assert departures(own) == {"image_size": 64, "max_steps": own.max_steps.model_dump()}
    with pytest.raises(ValueError, match="preset"):
        LiberoConfig.model_validate({"preset": "mine"})
