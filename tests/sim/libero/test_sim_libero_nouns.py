"""What LIBERO's things are called, by hand; which tasks can be asked about; and where a handle is."""

import numpy as np
import pytest

pytest.importorskip("libero.libero", reason="LIBERO is optional: requirements-libero.lock")

from roboalign.core.errors import RoboAlignError
from roboalign.sim.libero.demonstrations import DemonstratedLibero
from roboalign.sim.libero.nouns import point_noun, read_task, require_alignable, scene_nouns
from roboalign.sim.libero.protocol import LiberoConfig
from roboalign.sim.libero.suites import SUITES, suite_tasks

KINDS = {
    "akita_black_bowl_1": "akita_black_bowl",
    "wooden_cabinet_1": "wooden_cabinet",
    "flat_stove_1": "flat_stove",
    "kitchen_table": "kitchen_table",
    "basket_1": "basket",
    "plate_1": "plate",
    "plate_10": "plate",
    "wooden_two_layer_shelf_1": "wooden_two_layer_shelf",
    "desk_caddy_1": "desk_caddy",
    "microwave_1": "microwave",
}


@pytest.mark.parametrize(
    ("predicate", "name", "noun"),
    [
        ("on", "akita_black_bowl_1", "black bowl"),
        ("", "plate_10", "plate"),
        ("", "basket_1_contain_region", "basket"),
        ("open", "wooden_cabinet_1_top_region", "top drawer handle"),
        ("", "wooden_cabinet_1_top_region", "top drawer"),
        ("", "wooden_cabinet_1_top_side", "top of the cabinet"),
        ("turnon", "flat_stove_1", "stove knob"),
        ("", "flat_stove_1_cook_region", "stove"),
        ("close", "microwave_1", "microwave door"),
        ("", "wooden_two_layer_shelf_1_bottom_region", "place under the shelf"),
        ("", "desk_caddy_1_front_contain_region", "front compartment of the caddy"),
        ("", "kitchen_table_akita_black_bowl_front_region", "place in front of the black bowl"),
    ],
)
def test_nouns_by_hand(predicate: str, name: str, noun: str) -> None:
    assert point_noun(name, predicate, KINDS) == noun


def test_a_scene_lists_what_fixtures_have_and_no_table() -> None:
    assert scene_nouns(
        {name: KINDS[name] for name in ("flat_stove_1", "kitchen_table", "plate_1", "plate_10")}
    ) == ("plate, stove, stove knob")


def test_every_goal_of_every_suite_has_nouns_of_plain_words() -> None:
    for task in (task for suite in SUITES for task in suite_tasks(suite)):
        goals, kinds = read_task(task.name)
        for predicate, name, *targets in goals:
            things = point_noun(name, predicate, kinds)
            assert not {*things.split()} & {"of", "the", "and", "region"} and "_" not in things, (
                task.name,
                things,
            )
            assert all("region" not in point_noun(target, "", kinds) for target in targets), (
                task.name
            )


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (
            "libero_90/KITCHEN_SCENE1_open_the_top_drawer_of_the_cabinet_and_put_the_bowl_in_it",
            "2 parts",
        ),
        ("libero_90/KITCHEN_SCENE2_put_the_middle_black_bowl_on_the_plate", "3 of `black bowl`"),
        ("libero_90/LIVING_ROOM_SCENE5_put_the_red_mug_on_the_left_plate", "2 of `plate`"),
        ("libero_90/KITCHEN_SCENE7_put_the_white_bowl_to_the_right_of_the_plate", "its `right`"),
    ],
)
def test_tasks_without_one_right_answer_are_refused(task: str, reason: str) -> None:
    with pytest.raises(RoboAlignError, match=reason) as error:
        require_alignable(task)
    assert error.value.where == task
    require_alignable("libero_90/KITCHEN_SCENE1_put_the_black_bowl_on_the_plate")


def test_libero_90_shares_no_task_with_the_four_suites() -> None:
    """A task is its things and its goal; scenes are shared with libero_10."""

    def task(name: str) -> tuple[object, ...]:
        goals, kinds = read_task(name)
        return (*sorted(map(tuple, goals)), *sorted(kinds.items()))

    known = {task(one.name) for one in suite_tasks("libero_90")}
    assert len(known) > 80
    assert not known & {
        task(one.name) for suite in SUITES if suite != "libero_90" for one in suite_tasks(suite)
    }


def test_a_handle_is_where_its_pixels_are() -> None:
    """An image with the handle less one without it: what changed is where its privileged point is projected."""
    config = LiberoConfig(render="fast", render_size=256, image_size=256, cameras=("agentview",))
    name = "libero_90/KITCHEN_SCENE1_open_the_top_drawer_of_the_cabinet"
    environment = DemonstratedLibero("libero_90", config).make(name)
    environment.reset(1000)
    columns = dict(zip(environment.privileged_names, environment.privileged(), strict=True))
    handle = [columns[f"object.{axis}"] for axis in "xyz"]
    assert (
        columns["table.z"] == pytest.approx(0.9, abs=0.003)
        and columns["gripper.z"] > handle[2] > 0.9
    )
    projection = environment.camera_geometry()["agentview"].projection
    assert projection is not None
    u, v, depth = projection @ np.append(handle, 1.0)
    before = environment.render()["agentview"].astype(int)
    environment.model.geom(
        "wooden_cabinet_1_g17"
    ).group = 5  # the mesh of the top handle is drawn no more
    rows, columns_ = np.nonzero(np.abs(environment.render()["agentview"] - before).sum(-1) > 30)
    environment.close()
    assert depth > 0 and len(rows) > 20
    assert abs(np.median(columns_) - u / depth) < 4 and abs(np.median(rows) - v / depth) < 4
