"""Questions: right by the raw state (not by the generator's own facts), and scored as documented."""

import random
import re

import pytest
from data_episodes import TASKS, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scenes import GRID, HORIZON, scene, still_episode

from roboalign.conversations import prompts
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused
from roboalign.questions.ask import Question, ask, survey_world
from roboalign.questions.facts.scene import AXES, WAYPOINT, EpisodeScenes
from roboalign.questions.registry import chance, label_of, score_answer, types_from

LABELLED = STYLES["labelled"]
EPISODES = [make_episode(task, seed) for task in TASKS for seed in range(3)]
SCENE_TYPES = types_from("scene")
WORLD = survey_world(EPISODES)
SCENES = [EpisodeScenes(episode, "workspace", GRID, HORIZON) for episode in EPISODES]


def test_where_more_is_in_view_no_name_is_asked_and_nothing_in_view_counts_as_absent():
    crowded, other = make_episode("puck-push"), make_episode("button-press")
    crowded.nouns = {**crowded.nouns, "scene": "button, puck"}
    world = survey_world([crowded, other])
    assert world.objects == {"puck-push": (), "button-press": ()}
    assert survey_world([make_episode("puck-push"), other]).objects == {
        "puck-push": ("button",),
        "button-press": ("puck",),
    }
    found = EpisodeScenes(crowded, "workspace", GRID, HORIZON).at(0)
    assert isinstance(ask("object_name", "direct", (found, world), random.Random(0)), Refused)
    assert isinstance(ask("presence", "direct", (found, world), random.Random(0)), Refused)


def test_events_count_the_steps_to_what_is_still_to_come():
    episode = still_episode((0, 0.5, 0.2), (0.4, 0.5, 0.2), (0, 0.9, 0))
    episode.privileged[20:, 0] = 0.38  # the gripper arrives at the object
    episode.actions[25:, 2] = 1
    scenes = EpisodeScenes(episode, "workspace", GRID, 1)
    assert scenes.at(4).events == {"reach the puck": 16, "lift the gripper": 21}
    assert scenes.at(22).events == {"lift the gripper": 3}
    draws = (
        ask("order", "direct", (scenes.at(4), WORLD), random.Random(seed)) for seed in range(20)
    )
    for question in draws:
        letters = dict(re.findall(r"([AB]): ([a-z ]+)\.", question.text))
        assert letters[question.answer] == "reach the puck"


def check_axis(axis):
    def check(question, s, raw):
        noun_of = {noun: body for body, noun in s.nouns.items()}
        body = next(
            noun_of[noun]
            for noun in noun_of
            if noun != "gripper" and f"the {noun}" in question.text
        )
        offset = raw[body][axis] - raw["gripper"][axis]
        expected = "aligned" if abs(offset) <= 0.03 else AXES[axis][int(offset > 0)]
        assert question.answer == expected

    return check


def check_waypoint(question, s, raw):
    ahead = raw["episode"].position("gripper")[raw["t"] + WAYPOINT]
    assert question.answer == raw["cell"](ahead)


def check_trace(question, s, raw):
    hand = raw["episode"].position("gripper")
    ahead = [
        min(raw["t"] + step, len(hand) - 1) for step in (4, 8, 12)
    ]  # 3 points over two chunks of 6 steps
    assert question.answer == ", ".join(raw["cell"](hand[t]) for t in ahead)


CHECKS = {
    "trace": check_trace,
    "left_right": check_axis(0),
    "back_forward": check_axis(1),
    "down_up": check_axis(2),
    "waypoint": check_waypoint,
    "gripper_point": lambda q, s, raw: (
        q.answer == raw["cell"](raw["gripper"]) or pytest.fail(q.text)
    ),
    "object_point": lambda q, s, raw: q.answer == raw["cell"](raw["object"]) or pytest.fail(q.text),
    "presence": lambda q, s, raw: (
        (q.answer == "yes") == (s.nouns["object"] in q.text) or pytest.fail(q.text)
    ),
    "object_choice": lambda q, s, raw: (
        f"{q.answer}: {s.nouns['object']}." in q.text or pytest.fail(q.text)
    ),
    "task_choice": lambda q, s, raw: (
        f"{q.answer}: {s.instruction}" in q.text or pytest.fail(q.text)
    ),
}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SCENE_TYPES)),
    st.integers(0, len(EPISODES) - 1),
    st.integers(0, 29),
    st.integers(0, 10**6),
)
def test_every_question_is_right_and_alike_in_both_modes(name, number, t, seed):
    episode, s = EPISODES[number], SCENES[number].at(t)
    direct, think = (
        ask(name, mode, (s, WORLD), random.Random(seed)) for mode in ("direct", "think")
    )
    assert isinstance(direct, Refused) == isinstance(think, Refused)
    if isinstance(direct, Refused):
        return
    assert (direct.text, direct.answer) == (think.text, think.answer)
    assert direct.kind == SCENE_TYPES[name].kind and direct.reasoning is None
    assert think.kind == "reasoning" and 4 <= len(think.reasoning.split()) <= 50
    assert score_answer(name, direct.answer, direct.answer) == 1.0
    assert not re.search(r"[{}]|  |None|\.\.", direct.text + think.reasoning)
    if SCENE_TYPES[name].group in ("planning", "trace"):
        assert direct.text.startswith(prompts.task_prefix(episode.instruction))
    raw = {body: episode.position(body)[t] for body in ("gripper", "object", "goal")} | {
        "episode": episode,
        "t": t,
    }
    raw["cell"] = lambda p: f"{int((p[0] + 0.5) * GRID)} {int((1 - p[1]) * GRID)}"
    CHECKS.get(name, lambda *_: None)(direct, s, raw)
    for noun, u, v in re.findall(r"The ([a-z ]+) is at (\d+) (\d+)\.", think.reasoning):
        if body := next((b for b, n in s.nouns.items() if n == noun), None):
            assert f"{u} {v}" == raw["cell"](raw[body])


def test_every_type_can_be_asked_with_several_wordings():
    rng = random.Random(0)
    texts: dict[str, set[str]] = {name: set() for name in SCENE_TYPES}
    for _ in range(200):
        episode_scenes = rng.choice(SCENES)
        s = episode_scenes.at(rng.randrange(30))
        for name in SCENE_TYPES:
            question = ask(name, "direct", (s, WORLD), rng)
            if isinstance(question, Question):
                bare = question.text.split(" A: ")[0].removeprefix(
                    prompts.task_prefix(s.instruction)
                )
                for noun in sorted(
                    {n for e in EPISODES for n in e.nouns.values()} | {"gripper"}, key=len
                )[::-1]:
                    bare = bare.replace(f"the {noun}", "the X")
                texts[name].add(bare)
    assert {name for name, wordings in texts.items() if len(wordings) < 3} == set()


def test_movement_reasoning_ends_with_the_movement():
    s = scene((0, 0.5, 0.2), (0.3, 0.7, 0.0), (0, 0.9, 0), action=(1, 1, -1, -1))
    question = ask("movement", "think", (s, WORLD), random.Random(1))
    assert question.reasoning.endswith(
        "The gripper should move right, forward and down and stay open."
    )
    assert question.answer == "right, forward, down; keep"
    assert question.text.startswith("Task: Push the puck to the target. ")


def test_wrong_options_share_no_word_with_the_scene():
    mug = make_episode()
    mug.task, mug.instruction, mug.nouns = (
        "mug",
        "Push the mug under the coffee machine.",
        {"object": "mug"},
    )
    button = make_episode()
    button.task, button.instruction = "coffee", "Press the button of the coffee machine."
    button.nouns = {"object": "coffee machine button"}
    world = survey_world([mug, button, make_episode("plate-slide")])
    assert world.objects == {
        "mug": ("plate",),
        "coffee": ("plate",),
        "plate-slide": ("coffee machine button", "mug"),
    }
    assert world.instructions["mug"] == (TASKS["plate-slide"][0],)


@pytest.mark.parametrize(
    ("name", "expected", "predicted", "score"),
    [
        ("gripper_point", "12 20", "14 18", 1.0),
        ("gripper_point", "12 20", "15 20", 0.0),
        ("gripper_point", "12 20", "12, 20.", 1.0),
        ("gripper_point", "12 20", "12", 0.0),
        ("gripper_point", "12 20", "12 20 3", 0.0),
        ("gripper_point", "12 20", None, 0.0),
        ("relation", "right, down", " Right,  down. ", 1.0),
        ("relation", "right, down", "right", 0.0),
        ("presence", "yes", "", 0.0),
        ("presence", "yes", "yes", 1.0),
    ],
)
def test_scores_by_hand(name, expected, predicted, score):
    assert score_answer(name, expected, predicted) == score


@pytest.mark.parametrize(
    ("predicted", "score"),
    [
        ("12 20, 13 22, 15 25", 1.0),
        ("10 22, 13 22, 17 27.", 1.0),
        ("12 20, 13 22, 18 25", 0.0),
        ("12 20, 13 22", 0.0),
        ("12 20, 13 22, 15 25, 15 25", 0.0),
        ("12 20, 13 22, right", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_a_trace_is_right_where_each_of_its_points_is(predicted, score):
    assert score_answer("trace", "12 20, 13 22, 15 25", predicted) == score


def test_a_trace_stays_at_the_last_frame_and_is_not_asked_where_it_leaves_the_image():
    episode = still_episode((0, 0.5, 0.2), (0.4, 0.5, 0.2), (0, 0.9, 0))
    episode.privileged[29, 0] = 0.3
    scenes = EpisodeScenes(episode, "workspace", GRID, HORIZON)
    assert scenes.at(16).trace == ((8, 8), (8, 8), (8, 8))
    assert scenes.at(17).trace == ((8, 8), (8, 8), (12, 8))  # the last frame, 12 steps on
    assert scenes.at(25).trace == ((12, 8),) * 3
    episode.privileged[29, 0] = 0.7
    outside = EpisodeScenes(episode, "workspace", GRID, HORIZON)
    assert outside.at(16).trace and outside.at(17).trace is None
    assert isinstance(ask("trace", "direct", (outside.at(17), WORLD), random.Random(0)), Refused)


def test_chance():
    assert (
        chance("presence") == 0.5 and chance("relation") == 1 / 27 and chance("object_name") == 0.0
    )
    assert chance("waypoint", grid=10) == 0.25
    with pytest.raises(RoboAlignError, match="unknown question type 'colour'"):
        chance("colour")
    with pytest.raises(RoboAlignError, match="is not a point"):
        score_answer("waypoint", "left", "1 2")


NEXT_MOVEMENT = {
    "movement": "movement",
    "movement_choice": "letter",
    "move_left_right": "sideways",
    "move_back_forward": "depth",
    "move_down_up": "vertical",
    "gripper_command": "fingers",
    "waypoint": "point",
    "trace": "trace",
}


def test_the_label_alone_tells_the_questions_about_the_next_movement_apart():
    asked: dict[str, set[str]] = {name: set() for name in SCENE_TYPES}
    rng = random.Random(0)
    for _ in range(200):
        s = SCENES[0].at(rng.randrange(30))
        for name in SCENE_TYPES:
            question = ask(name, "direct", (s, WORLD), rng)
            if isinstance(question, Question):
                asked[name].add(question.text.split(" A: ")[0])  # without the options
    instruction = EPISODES[0].instruction
    actions = {
        LABELLED.bare(LABELLED.action_question(instruction, mode, wording, lead=lead))
        for mode in prompts.MODES
        for wording in range(len(prompts.NEXT_STEP))
        for lead in (False, True)
    }
    assert len(actions) == len(prompts.NEXT_STEP)
    assert {name for name, texts in asked.items() if texts & actions} == set(NEXT_MOVEMENT)
    for name, label in NEXT_MOVEMENT.items():
        assert asked[name] == actions, name
        assert label_of(name) == label
    assert len({*NEXT_MOVEMENT.values(), prompts.ACTIONS}) == len(NEXT_MOVEMENT) + 1


def test_labels():
    labels = {name: label_of(name) for name in SCENE_TYPES}
    for name, label in {
        "presence": "verdict",
        "order": "letter",
        "object_choice": "letter",
        "gripper_point": "point",
        "left_right": "side",
        "relation": "relation",
    }.items():
        assert labels[name] == label
    assert all(
        re.fullmatch("[a-z_]+", label) for label in labels.values()
    )  # no colon, no quote: they are parsed
    with pytest.raises(RoboAlignError, match="unknown question type 'action'"):
        label_of("action")
