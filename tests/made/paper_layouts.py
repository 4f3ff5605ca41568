"""Records of the paper's published sources, made up in the exact layout of each download.

Images differ in width alone, so that a test sees their order.
"""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FRAMES = "rt_frames_success/rtx_frames_success_42/62_robo_set#episode_15700"
KITCHEN = "EPIC-KITCHENS/P07/rgb_frames/P07_113"
FORMAT = (
    "Your answer should be formatted as a list of tuples, i.e. [(x1, y1)], where each tuple contains "
    "the x and y coordinates of a point satisfying the conditions above."
)


def picture(width: int, format: str = "JPEG") -> bytes:
    """An image file of this width, 8 pixels high."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, 8), (width % 256, 90, 160)).save(buffer, format)
    return buffer.getvalue()


def put(path: Path, content: bytes | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def turns(*texts: str) -> list[dict]:
    """LLaVA's turns: question, answer, question, .."""
    return [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(texts)]


def write_onevision(folder: Path) -> None:
    """Parquet subsets with an image and without any, a JSON subset, and M4-Instruct's lists."""
    ask = turns("<image>\nWhat is the man holding?\nAnswer with a single word.", "Umbrella")
    unmarked = turns("Which is larger?\nA. cat\nB. dog", "B")
    table = {
        "id": ["a", "b"],
        "image": [{"bytes": picture(32), "path": "1.jpg"}, {"bytes": picture(33), "path": None}],
        "data_source": ["textcaps"] * 2,
        "conversations": [ask, unmarked],
    }
    subset = folder / "textcaps"
    subset.mkdir(parents=True)
    pq.write_table(pa.table(table), subset / "train-00000-of-00001.parquet")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    talk = {
        "id": ["t"],
        "image": pa.array([None], image),
        "data_source": ["magpie_pro"],
        "conversations": [turns("Name a prime.", "2", "Another.", "3")],
    }
    (folder / "magpie_pro").mkdir()
    pq.write_table(pa.table(talk), folder / "magpie_pro/train-00000-of-00001.parquet")
    record = {
        "id": "k",
        "image": "docvqa/documents/9.png",
        "conversations": turns("<image>\nRead it.", "42"),
    }
    put(folder / "ureader_kg/ureader_kg_processed.json", [record])
    put(folder / "ureader_kg/docvqa/documents/9.png", picture(34, "PNG"))
    several = {
        "sample_id": 7,
        "image": ["HQ-Edit/images/2.jpg", "HQ-Edit/images/1.jpg"],
        "conversations": turns("Before: <image> After: <image>\nWhat changed?", "The sky."),
        "metadata": {"dataset": "HQ-Edit", "split": "train"},
    }
    put(folder / "M4-Instruct-Data/m4_instruct_annotations.json", [several])
    put(folder / "M4-Instruct-Data/HQ-Edit/images/2.jpg", picture(36))
    put(folder / "M4-Instruct-Data/HQ-Edit/images/1.jpg", picture(35))


def write_refspatial(folder: Path) -> None:
    """All eight files: choices, points, reasoning in words, two views, and the simulator."""

    def record(id: str, images: list[str], *texts: str) -> dict:
        depths = [name.replace("image", "depth") for name in images]
        return {"id": id, "image": images, "depth": depths, "conversations": turns(*texts)}

    choice = (
        "<image>\nWhich is nearer?\n(A) the cup\n(B) the bowl",
        "(B)",
        "Which is left?\n(A) the cup\n(B) the bowl",
        "(A) the cup",
    )
    words = ("<image>\nHow far is the cup?", "The cup is 0.4 meters away.")
    vacant = (f"<image>\nPoint to the space left of the cup. {FORMAT}", "[(0.25, 0.5)]")
    two = ("<image>\n<image>\nDid the camera move?\n(A) left\n(B) right", "(B)")
    simulated = record(
        "s", ["6_image.png"], f"<image>\nPoint to the third cup. {FORMAT}", "[(0.5, 0.75)]"
    )
    simulated["thinking"] = [{"question_type": "location", "thinking": "Step 1. Find the cups."}]
    files = {
        "2D/choice_qa.json": ("2D/image", record("1", ["1_image.png"], *choice)),
        "2D/reasoning_template_qa.json": ("2D/image", record("2", ["1_image.png"], *words)),
        "3D/choice_qa.json": ("3D/image", record("3", ["2_image.png"], *choice)),
        "3D/multi_view_qa.json": (
            "3D/image_multi_view",
            record("4", ["4_image.png", "3_image.png"], *two),
        ),
        "3D/reasoning_template_qa.json": ("3D/image", record("5", ["2_image.png"], *words)),
        "3D/vacant_qa.json": ("3D/image", record("6", ["2_image.png"], *vacant)),
        "3D/visual_choice_qa.json": (
            "3D/image_visual_choice",
            record("7", ["5_image.png"], *choice),
        ),
        "Simulator/metadata.json": ("Simulator/image", simulated),
    }
    for name, (images, one) in files.items():
        put(folder / name, [one])
        for image in one["image"]:
            put(folder / images / image, picture(40 + int(image[0]), "PNG"))


def write_robopoint(folder: Path) -> None:
    """Points in a region, a box of LVIS, and a text-only conversation."""
    points = {
        "id": "region_ref/1",
        "image": "region_ref/1.png",
        "conversations": turns(
            f"<image>\nPinpoint several points left of the object. {FORMAT}",
            "[(0.461, 0.527), (0.498, 0.521)]",
        ),
    }
    boxes = {
        "id": "lvis_1",
        "image": "coco/train2017/1.jpg",
        "conversations": turns("Find cups.\n<image>", "[(0.5, 0.4, 0.1, 0.2)]"),
    }
    text = {"id": "sharegpt_1", "conversations": turns("Say hello.", "Hello.")}
    put(folder / "robopoint_1432k.json", [points, boxes, text])
    put(folder / "images/region_ref/1.png", picture(50, "PNG"))
    put(folder / "images/coco/train2017/1.jpg", picture(51))


def egoplan_record(id: int, **more) -> dict:
    """The record that EgoPlan's README shows."""
    return {
        "sample_id": id,
        "video_source": "EpicKitchens",
        "video_id": "P07_113",
        "task_goal": "Cut and peel the onion",
        "question": "Considering the progress shown in the video and my current observation in the "
        "last frame, what action should I take next in order to cut and peel the onion?",
        "answer": "grab onion",
        "current_observation_frame": 9308,
        "task_progress_metadata": [
            {"narration_text": "open drawer", "start_frame": 9162, "stop_frame": 9203},
            {"narration_text": "grab knife", "start_frame": 9214, "stop_frame": 9273},
            {"narration_text": "close drawer", "start_frame": 9272, "stop_frame": 9303},
        ],
        "negative_answers": ["open drawer", "grab knife"],
        **more,
    }


def write_egoplan(folder: Path) -> None:
    """A record of EPIC-KITCHENS with its frames, and one of Ego4D, which cannot be read."""
    other = egoplan_record(40, video_source="Ego4D", video_id="000786a7")
    put(folder / "EgoPlan_IT.json", [egoplan_record(39), other])
    for frame in (9203, 9272, 9303, 9308):
        put(folder / KITCHEN / f"frame_{frame:010d}.jpg", picture(frame - 9000))


def write_sharerobot(folder: Path) -> None:
    """Two questions about one episode; the paths are those of the authors' machine."""

    def record(task: str, frames: int, question: str, answer: str) -> dict:
        marks = " ".join(["<image>"] * frames)
        return {
            "id": f"/mnt/hpfs/baaiei/jyShi/{FRAMES}",
            "task": task,
            "selected_step": 1,
            "image": [f"/mnt/hpfs/baaiei/jyShi/{FRAMES}/frame_{n}.png" for n in range(frames)],
            "conversations": turns(f"{marks}\n{question}", answer),
        }

    put(
        folder / "planning/train/planning_task.json",
        [record("Planning_Task", 3, "What is next for <place a cup>?", "<grasp the cup>")],
    )
    put(
        folder / "planning/train/success_(positive)_task.json",
        [record("Success_(Positive)_Task", 12, "Was <grasp the cup> done?", "yes")],
    )
    put(folder / "planning/test/planning_task.json", [record("Planning_Task", 1, "Next?", "<x>")])
    for number in range(12):
        put(folder / "planning" / FRAMES / f"frame_{number}.png", picture(60 + number, "PNG"))


WRITERS = {
    "llava-onevision": write_onevision,
    "refspatial": write_refspatial,
    "robopoint": write_robopoint,
    "egoplan-it": write_egoplan,
    "sharerobot": write_sharerobot,
}


def write_all(folder: Path) -> dict[str, Path]:
    """Write every published source; return name -> folder."""
    for name, write in WRITERS.items():
        write(folder / name)
    return {name: folder / name for name in WRITERS}
