"""The published layouts of the paper's sources: text, order of images and options, as written there."""

from pathlib import Path

import pytest
from paper_layouts import WRITERS, egoplan_record, put, turns

from roboalign.conversations.conversation import Conversation
from roboalign.conversations.qa.convert import to_conversation
from roboalign.conversations.qa.normal import Choice, Points, QaSample
from roboalign.conversations.qa.presets import read_preset
from roboalign.core.outcomes import Fault
from roboalign.episodes.pictures import size_of_file


def read(name: str, folder: Path) -> list[QaSample | Fault]:
    WRITERS[name](folder)
    return list(read_preset(name, folder))


def shown(sample: QaSample) -> tuple[list[tuple[str, str]], list[int]]:
    """(question, answer) of every turn as the style `paper` trains on it, and the images' widths."""
    found = to_conversation(sample, prompts="paper")
    assert isinstance(found, Conversation)
    widths = [size_of_file(image)[0] for image in found.images]
    return [(turn.question, turn.answer) for turn in found.turns], widths


def test_onevision_with_one_image_none_and_several(tmp_path: Path):
    found = read("llava-onevision", tmp_path)
    talk, seen, unmarked, several, document = map(shown, found)
    assert talk == ([("Name a prime.", "2"), ("Another.", "3")], [])
    question = "What is the man holding?\nAnswer with a single word."
    assert seen == ([(question, "Umbrella")], [32])
    assert unmarked == ([("Which is larger?\nA. cat\nB. dog", "B")], [33])
    assert several == (
        [("Before: <image> After: <image>\nWhat changed?", "The sky.")],
        [36, 35],  # as the record lists them, not sorted
    )
    assert document == ([("Read it.", "42")], [34])


def test_onevision_without_its_json_subsets_misses_nothing(tmp_path: Path):
    WRITERS["llava-onevision"](tmp_path)
    (tmp_path / "ureader_kg/ureader_kg_processed.json").unlink()
    (tmp_path / "M4-Instruct-Data/m4_instruct_annotations.json").unlink()
    found = list(read_preset("llava-onevision", tmp_path))
    assert len(found) == 3 and not any(isinstance(one, Fault) for one in found)


def test_refspatial_choices_points_words_views_and_the_simulator(tmp_path: Path):
    found = {sample.id: sample for sample in read("refspatial", tmp_path)}
    choice = [
        ("Which is nearer?\n(A) the cup\n(B) the bowl", "(B)"),
        ("Which is left?\n(A) the cup\n(B) the bowl", "(A) the cup"),
    ]
    options = ("the cup", "the bowl")
    for id, width in (("1", 41), ("3", 42), ("7", 45)):
        assert shown(found[id]) == (choice, [width])
        assert found[id].targets == (Choice(options, 1), Choice(options, 0))
    for id, width in (("2", 41), ("5", 42)):
        assert shown(found[id]) == (
            [("How far is the cup?", "The cup is 0.4 meters away.")],
            [width],
        )
    assert shown(found["4"]) == ([("Did the camera move?\n(A) left\n(B) right", "(B)")], [44, 43])
    ((asked, answer),), widths = shown(found["6"])
    assert asked.startswith("Point to the space left of the cup. Your answer") and widths == [42]
    assert answer == "[(0.25, 0.5)]" and found["6"].targets == (Points(((0.25, 0.5),)),)
    ((asked, answer),), widths = shown(found["s"])
    assert (answer, widths) == ("[(0.5, 0.75)]", [46]) and "Step 1" not in asked


def test_refspatial_turns_that_repeat_a_mark_are_named(tmp_path: Path):
    WRITERS["refspatial"](tmp_path)
    record = {
        "id": "9",
        "image": ["1_image.png"],
        "conversations": turns("<image>\nA?", "a", "<image>\nB?", "b"),
    }
    put(tmp_path / "2D/choice_qa.json", [record])
    fault = next(iter(read_preset("refspatial", tmp_path)))
    assert fault.problem == "2 <image> marks and 1 images"
    assert fault.where.endswith("choice_qa.json, record 1, field conversations")


def test_robopoint_points_boxes_and_text(tmp_path: Path):
    points, boxes, text = read("robopoint", tmp_path)
    ((asked, answer),), widths = shown(points)
    assert asked.startswith("Pinpoint several points left of the object. Your answer")
    assert (answer, widths) == ("[(0.461, 0.527), (0.498, 0.521)]", [50])
    assert points.targets == (Points(((0.461, 0.527), (0.498, 0.521))),)
    assert shown(boxes) == ([("Find cups.\n<image>", "[(0.5, 0.4, 0.1, 0.2)]")], [51])
    assert shown(text) == ([("Say hello.", "Hello.")], [])


def test_egoplan_shows_the_last_frame_of_each_action_then_the_current_one(tmp_path: Path):
    sample, video = read("egoplan-it", tmp_path)
    # `grab knife` ends at 9273, after `close drawer` begins at 9272.
    ((asked, answer),), widths = shown(sample)
    assert widths == [203, 272, 303, 308] and answer == "grab onion" and sample.id == "39"
    assert asked == egoplan_record(39)["question"]
    assert isinstance(video, Fault) and video.where.endswith("record 2, field video_source")


@pytest.mark.parametrize(
    ("actions", "current", "expected"),
    [
        ([], 760, [760]),
        ([(1, 5), (6, 9), (10, 14), (15, 19), (20, 30)], 40, [9, 14, 19, 30, 40]),
        ([(1, 5), (6, 40), (41, 90)], 40, [5, 40]),  # the last is not completed; 40 is current
    ],
)
def test_egoplan_frames_are_the_recent_ones_and_none_is_later(
    tmp_path: Path, actions: list, current: int, expected: list[int]
):
    progress = [
        {"narration_text": "a", "start_frame": start, "stop_frame": stop} for start, stop in actions
    ]
    record = egoplan_record(1, task_progress_metadata=progress, current_observation_frame=current)
    put(tmp_path / "EgoPlan_IT.json", [record])
    (sample,) = read_preset("egoplan-it", tmp_path)
    assert [int(image.name[-14:-4]) for image in sample.images] == expected


@pytest.mark.parametrize("progress", [None, "x", [{}], [{"start_frame": 1, "stop_frame": "2"}]])
def test_egoplan_progress_that_is_not_readable_is_named(tmp_path: Path, progress):
    put(tmp_path / "EgoPlan_IT.json", [egoplan_record(1, task_progress_metadata=progress)])
    (fault,) = read_preset("egoplan-it", tmp_path)
    assert fault.where.endswith("record 1, field task_progress_metadata")


def test_sharerobot_shows_the_frames_of_the_train_folder_in_order(tmp_path: Path):
    next_step, success = read("sharerobot", tmp_path)
    assert shown(next_step) == (
        [("What is next for <place a cup>?", "<grasp the cup>")],
        [60, 61, 62],
    )
    texts, widths = shown(success)
    assert texts == [("Was <grasp the cup> done?", "yes")]
    assert widths == list(range(60, 72))  # frame_10 after frame_9
