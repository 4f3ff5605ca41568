"""Presets: what is claimed of each source, and its files, laid out as its page shows, read to the end."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from roboalign.conversations.qa.convert import to_conversation
from roboalign.conversations.qa.normal import Points, QaSample
from roboalign.conversations.qa.presets import QA_PRESETS, read_preset
from roboalign.conversations.qa.read import LAYOUTS
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault

ROBOPOINT = {  # the record that RoboPoint's README shows, its question shortened
    "id": "region_ref/1033888784-63bd2a7_cam05_obj5-obj18_left",
    "image": "region_ref/1033888784-63bd2a7_cam05_obj5-obj18.png",
    "conversations": [
        {"from": "human", "value": "<image>\nPinpoint several points left of the object."},
        {
            "from": "gpt",
            "value": "[(0.461, 0.527), (0.498, 0.521), (0.481, 0.521), (0.445, 0.529)]",
        },
    ],
}
EGOPLAN = {  # the record that EgoPlan's README shows
    "sample_id": 39,
    "video_source": "EpicKitchens",
    "video_id": "P07_113",
    "task_goal": "Cut and peel the onion",
    "question": "Considering the progress shown in the video, what action should I take next?",
    "answer": "grab onion",
    "current_observation_frame": 9308,
    "task_progress_metadata": [],
    "negative_answers": ["open drawer"],
}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, content: bytes | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_counts_are_the_papers():
    counts = {name: preset.count for name, preset in QA_PRESETS.items()}
    assert counts == {
        "llava-onevision": 100_000,
        "refspatial": 300_000,
        "robopoint": 200_000,
        "egoplan-it": 50_000,
        "multi-view": 500_000,
        "sharerobot": 100_000,
        "robotvqa": 100_000,
        "roboalign-vqa": 150_000,
        "robot-qa": 300_000,
        "reasoning": 76_000,
    }
    assert round(sum(counts.values()), -4) == 1_880_000


@pytest.mark.parametrize("preset", QA_PRESETS.values(), ids=QA_PRESETS)
def test_what_is_not_known_is_said(preset):
    unknown = preset.notes.split("unverified:")[-1]
    for field in ("hub", "licence", "layout"):
        if getattr(preset, field) is None:
            assert field in unknown or "everything" in unknown
    assert "unverified:" in preset.notes
    assert preset.layout is None or preset.layout in LAYOUTS
    assert bool(preset.parts) == (preset.layout is not None)
    assert preset.kind in ("general", "embodied", "reasoning")


def test_robopoint(tmp_path):
    boxes = {
        "id": "b",
        "image": "coco/1.jpg",
        "conversations": turns("<image>\nFind cups.", "[(0.5, 0.4, 0.1, 0.2)]"),
    }
    put(tmp_path / "robopoint_1432k.json", [ROBOPOINT, boxes])
    put(tmp_path / "images" / ROBOPOINT["image"], picture())
    points, text = read_preset("robopoint", tmp_path)
    assert isinstance(points, QaSample) and isinstance(points.targets[0], Points)
    assert points.targets[0].xy[1] == (0.498, 0.521) and points.images[0].size() == (8, 4)
    assert points.source == "robopoint" and points.kind == "embodied" and text.targets == (None,)
    assert isinstance(to_conversation(text), Fault)  # its image is not there
    assert to_conversation(points).task == "robopoint"


def test_refspatial_parts_have_their_own_image_folders(tmp_path):
    record = {
        "id": 1,
        "image": ["x.png"],
        "depth": ["d.png"],
        "conversations": turns("Point at it.", "[(0.5, 0.25)]"),
    }
    put(tmp_path / "2D/choice_qa.json", [record])
    put(tmp_path / "2D/image/x.png", picture())
    put(tmp_path / "3D/multi_view_qa.json", [record | {"image": ["x.png", "y.png"]}])
    put(tmp_path / "3D/image_multi_view/y.png", picture())
    found = list(read_preset("refspatial", tmp_path))
    samples = [item for item in found if isinstance(item, QaSample)]
    assert [sample.targets for sample in samples] == [(Points(((0.5, 0.25),)),)] * 2
    assert [image.size() for image in samples[0].images] == [(8, 4)]
    assert isinstance(samples[1].images[0].size(), Fault) and samples[1].images[1].size() == (8, 4)
    missing = [item for item in found if isinstance(item, Fault)]
    assert len(missing) == 6 and all(
        "missing" in fault.problem and "unzip" in fault.fix for fault in missing
    )


def test_sharerobot_takes_the_training_half_and_cuts_the_authors_paths(tmp_path):
    inner = "rt_frames_success/rtx_frames_success_42/62_robo_set#episode_15700/frame_{}.png"
    record = {
        "id": "e",
        "task": "Planning_Task",
        "selected_step": 1,
        "image": ["/mnt/x/" + inner.format(0), inner.format(1)],
        "conversations": turns("<image> <image>\nWhat next?", "<grasp>"),
    }
    put(tmp_path / "planning/train/planning_task.json", [record])
    put(tmp_path / "planning/test/planning_task.json", [record])
    for number in range(2):
        put(tmp_path / "planning" / inner.format(number), picture())
    (sample,) = read_preset("sharerobot", tmp_path)
    assert [image.size() for image in sample.images] == [(8, 4)] * 2 and sample.targets == (None,)


def test_egoplan(tmp_path):
    ego4d = EGOPLAN | {"video_source": "Ego4D", "video_id": "000786a7"}
    put(
        tmp_path / "EgoPlan_IT.json", [EGOPLAN, ego4d, EGOPLAN | {"current_observation_frame": "x"}]
    )
    put(tmp_path / "EPIC-KITCHENS/P07/rgb_frames/P07_113/frame_0000009308.jpg", picture())
    sample, video, broken = read_preset("egoplan-it", tmp_path)
    assert (
        sample.id == "39"
        and sample.turns[0][1] == "grab onion"
        and sample.images[0].size() == (8, 4)
    )
    assert video.where.endswith("record 2, field video_source") and "000786a7" in video.problem
    assert broken.where.endswith("record 3, field current_observation_frame")


def test_onevision(tmp_path):
    (tmp_path / "textcaps").mkdir()
    table = {
        "id": ["a", "b"],
        "image": [{"bytes": picture(), "path": "1.jpg"}, None],
        "data_source": ["textcaps"] * 2,
        "conversations": [turns("<image>\nSay.", "A sign."), turns("Hi", "Ho")],
    }
    pq.write_table(pa.table(table), tmp_path / "textcaps/train-00000-of-00001.parquet")
    seen, text = read_preset("llava-onevision", tmp_path)
    assert seen.images[0].size() == (8, 4) and text.images == () and text.kind == "general"


@pytest.mark.parametrize(
    "name, parts",
    [
        (
            "sharerobot",
            [
                "planning/train",
                "huggingface-cli download BAAI/ShareRobot --repo-type dataset",
                "tar xz",
            ],
        ),
        (
            "egoplan-it",
            ["EgoPlan_IT.json", "github.com/ChenYi99/EgoPlan", "absent/EPIC-KITCHENS/P01"],
        ),
        ("robotvqa", ["cannot be downloaded", "unverified", "read_qa"]),
        ("reasoning", ["not published"]),
        ("robopint", ["unknown source 'robopint'", "robopoint"]),
    ],
)
def test_what_is_absent_is_one_error_with_what_to_do(tmp_path, name, parts):
    with pytest.raises(RoboAlignError) as raised:
        read_preset(name, tmp_path / "absent")
    assert all(part in str(raised.value) for part in parts)
