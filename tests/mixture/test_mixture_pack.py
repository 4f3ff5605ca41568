"""Packed robot sources: an action and questions about one frame, right by the raw recording."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_episodes import make_episode
from mixing_sources import settings
from pydantic import ValidationError

from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, write_json
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.mixture.builder import build
from roboalign.mixture.manifest import verify_manifest
from roboalign.mixture.packing import FrameFacts, Packer
from roboalign.mixture.preview import preview
from roboalign.questions.registry import types_from

TOKENS = {"fit": True, "horizon": 4, "scale": 4.0, "vocab_size": 64}
STEP = np.array([0.02, -0.01, 0.0])  # forward and left by the axes below: 2 cm forward, 1 cm right
GRID = 32


def recorded(number: int, steps: int = 12) -> Episode:
    """A recording: no simulator's state, no projection; two cameras, the second one black."""
    made = make_episode("puck-push", number, steps=steps)
    actions = np.zeros((steps, 7), np.float32)
    actions[:, :3] = STEP
    actions[:, 6] = [float(t < 6) for t in range(steps)]  # open, then closed
    black = [encode_png(np.zeros((32, 32, 3), np.uint8))] * steps
    return replace(
        made,
        episode_id=f"recorded/{number}",
        actions=actions,
        images={**made.images, "dark": black},
        cameras={name: Camera(name, 32, 32) for name in ("workspace", "dark")},
        privileged=None,
        privileged_names=(),
        nouns={},
        success_step=None,
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("recorded") / "robot"
    made = [recorded(number) for number in range(3)]
    rewrite(RobotData("made", "test", lambda: iter(made)), folder)
    return str(folder)


def source(robot: str, count: int = 12, **pack) -> dict:
    of = {"space": "bridge", "camera": "workspace"} if "recorded" in robot else {}
    return {"name": "acts", "robot": robot, "count": count, **of, "pack": pack}


def train(folder: Path) -> list[Conversation]:
    return read_conversations(folder, "train")


def test_from_a_simulator_the_points_and_the_gripper_are_those_of_its_state(made: Path, tmp_path):
    config = settings(source(str(made / "robot"), 40, min_turns=3, max_turns=5), tokenizer=TOKENS)
    manifest = build(config, tmp_path / "a")
    read = {e.episode_id: e for e in open_robot_data(made / "robot").read()}
    modes, checked, places = Counter(), 0, set()
    for one in train(tmp_path / "a"):
        kinds = [turn.kind for turn in one.turns]
        assert kinds.count("action") == 1 and 3 <= len(kinds) <= 5 and len(one.images) == 1
        places.add(kinds.index("action"))
        episode = read[one.episode_id]
        assert one.images[0] == episode.png("workspace", one.frame) and one.target is None
        names = [turn.type for turn in one.turns]
        assert len(set(names)) == len(names) and set(names) <= {"action", *types_from("scene")}
        for turn in one.turns:
            modes[turn.mode] += turn.kind != "action"
            if turn.type in ("gripper_point", "object_point"):
                u, v, _ = episode.position(turn.type.split("_")[0])[one.frame]
                cell = f"{int((u + 0.5) * GRID)} {int((1 - v) * GRID)}"
                assert turn.expected == cell
                checked += 1
    assert checked > 5 and 0.2 < modes["think"] / modes.total() < 0.7 and len(places) > 2
    assert manifest["counts"]["train"]["type"]["action"] == 40


def test_of_a_recording_what_its_actions_say_is_asked_and_nothing_else(recording, tmp_path):
    weights = {"state": 1, "planning": 1, "spatial": 1, "trace": 1}
    config = settings(source(recording, 30, weights=weights, horizon=3), tokenizer=TOKENS)
    manifest = build(config, tmp_path / "a")
    answers: dict[str, set[str]] = {}
    for one in train(tmp_path / "a"):
        for turn in one.turns:
            answers.setdefault(turn.type, set()).add(turn.expected)
            if turn.type == "fingers_now":
                assert turn.expected == ("open" if one.frame <= 6 else "closed")
            if turn.type == "next_movement_choice":
                options = dict(re.findall(r"([ABC]): ([a-z, ]+)\.", turn.question))
                assert options[turn.expected] == "right, forward"
    assert answers["displacement"] == {"3 cm right, 6 cm forward"}
    assert answers["next_movement"] == {"right, forward"}
    assert answers["main_direction"] == {"forward"} and answers["next_rotation"] == {"stay"}
    # No camera is calibrated, and that the recording is the whole task is not known.
    assert not {"gripper_cell", "gripper_trace", "quarter", "frame_order"} & set(answers)
    missed = manifest["sources"]["acts"]["not_asked"]
    assert missed["quarter: whether the recording is the whole task is not known"] > 0
    assert sum(manifest["counts"]["train"]["type"].values()) == sum(
        len(one.turns) for one in train(tmp_path / "a")
    )


def test_a_sample_is_fixed_by_the_seed_alone_and_each_style_asks_in_its_form(recording, tmp_path):
    for name, count in (("one", 12), ("more", 20)):
        build(settings(source(recording, count), tokenizer=TOKENS), tmp_path / name)
    more = {one.id: one.turns for one in train(tmp_path / "more")}
    for one in train(tmp_path / "one"):  # the tokenizer is fitted on what is drawn
        questions = [
            [t for t in turns if t.kind != "action"] for turns in (one.turns, more[one.id])
        ]
        assert questions[0] == questions[1]
    config = settings(source(recording), tokenizer=TOKENS, prompts="paper")
    build(config, tmp_path / "paper")
    pairs = list(zip(train(tmp_path / "one"), train(tmp_path / "paper"), strict=True))
    for labelled, paper in pairs:
        assert labelled.id == paper.id
        for told, plain in zip(labelled.turns, paper.turns, strict=True):
            assert (told.type, told.mode, told.expected) == (plain.type, plain.mode, plain.expected)
            if plain.mode == "direct":
                assert plain.answer == plain.expected
            assert STYLES["labelled"].bare(told.question).split()[0] == plain.question.split()[0]


def test_rl_has_the_action_alone_and_held_out_turns_are_asked_one_by_one(recording, tmp_path):
    more = {"heldout": {"share": 0.34}, "rl": {"source": "acts", "count": 2, "at_most": 1.0}}
    config = settings(source(recording, 10), tokenizer=TOKENS, **more)
    manifest = build(config, tmp_path / "a")
    for one in read_conversations(tmp_path / "a", "rl"):
        (turn,) = one.turns
        assert turn.kind == "action" and turn.mode == "think" and one.target and one.chunk
    held = read_conversations(tmp_path / "a", "heldout")
    assert len({one.id for one in held}) == len(held) > manifest["sources"]["acts"]["heldout"]
    assert all(len(one.turns) == 1 and len(one.images) == 1 for one in held)
    assert all((one.target is not None) == (one.turns[0].kind == "action") for one in held)
    trained = {one.episode_id for one in train(tmp_path / "a")}
    assert held and not trained & {one.episode_id for one in held}
    assert verify_manifest(tmp_path / "a") == manifest
    (told,) = preview(config, most=24)
    assert told.good == 9 and told.short == 0 and told.text_bytes > 9 * 1000


def taught(folder: Path, camera: str, kind: str = "embodied", text: str = "Which toy?") -> str:
    """A teacher's folder about two frames of the first recording."""
    episode = recorded(0)
    style = STYLES["labelled"]
    turn = Turn(
        kind,
        "text",
        "direct",
        style.question(text, "direct", "answer"),
        style.reply("a red puck", "direct", "answer"),
        "a red puck",
    )
    rows = [
        Conversation(f"t/{t}", "recorded/0", t, "puck", (episode.png(camera, t),), (turn,))
        for t in (2, 5)
    ]
    folder.mkdir(parents=True)
    write_conversations(folder / "train-00000.parquet", rows)
    shards = {path.name: hash_file(path) for path in folder.glob("*.parquet")}
    write_json(folder / "manifest.json", {"prompts": "labelled", "shards": shards})
    return str(folder)


def test_a_teachers_questions_are_packed_with_their_frame_or_refused(recording, tmp_path):
    folder = taught(tmp_path / "taught", "workspace")
    pack = {"teacher": folder, "weights": {"teacher": 5, "state": 1, "planning": 1}}
    config = settings(source(recording, 36, **pack), tokenizer=TOKENS)
    manifest = build(config, tmp_path / "a")
    asked = {
        (one.episode_id, one.frame): turn.answer
        for one in train(tmp_path / "a")
        for turn in one.turns
        if turn.type == "text"
    }
    assert set(asked) == {("recorded/0", 2), ("recorded/0", 5)}
    assert "acts/teacher/train-00000.parquet" in manifest["files"]
    other = {"teacher": taught(tmp_path / "dark", "dark")}
    with pytest.raises(RoboAlignError, match="not asked about the image of camera workspace"):
        build(settings(source(recording, 36, **other), tokenizer=TOKENS), tmp_path / "b")
    spelled = {"teacher": taught(tmp_path / "bad", "workspace", text="Is <|im_end|> there?")}
    build(settings(source(recording, 36, **spelled), tokenizer=TOKENS), tmp_path / "c")
    assert not any(turn.type == "text" for one in train(tmp_path / "c") for turn in one.turns)


def test_a_picture_of_one_color_is_refused_and_several_images_ask_for_no_point(recording, tmp_path):
    both = {**source(recording, 1), "camera": ["workspace", "dark"]}
    with pytest.raises(RoboAlignError, match="no sample is left"):
        build(settings(both, tokenizer=TOKENS), tmp_path / "a")
    facts = FrameFacts("scene", (None, None), one_image=False).groups()
    assert "gripper_point" not in facts and "trace" not in facts and "height" in facts


@pytest.mark.parametrize(
    ("pack", "problem"),
    [
        ({"min_turns": 5, "max_turns": 4}, "min_turns 5 is above max_turns 4"),
        ({"weights": {"colour": 1}}, "name some of"),
        ({"weights": {"state": 0}}, "not all 0"),
        ({"axes": ["right", "forward", "down"]}, "left-handed"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pack: dict, problem: str) -> None:
    with pytest.raises((ValidationError, RoboAlignError), match=problem):
        settings(source("recorded", **pack), tokenizer=TOKENS)
    with pytest.raises(ValidationError, match=r"pack\.teacher needs one camera"):
        several = {**source("recorded", teacher="x"), "camera": ["a", "b"]}
        settings(several, tokenizer=TOKENS)


def test_a_packer_gives_the_turns_asked_and_counts_what_does_not_apply() -> None:
    turn = Turn("embodied", "text", "direct", "q", "a", "a")
    facts = FrameFacts("motion", (None, 0), taught=(turn, turn))
    packer = Packer({"teacher": 1.0}, 0.5, STYLES["paper"])
    for seed in range(20):
        turns = packer.pack(facts, None, (1, 2), random.Random(seed))
        assert 1 <= len(turns) <= 2 and not packer.undrawn
    assert json.dumps(packer.reasons) == "{}"
