"""Small sound files of every supported format, and the public command that reads each."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

TESTS = Path(__file__).parent
sys.path += [str(TESTS / "made"), str(TESTS / "episodes"), str(TESTS / "mixture")]

from calvin_sets import annotate, record, step_arrays, step_path  # noqa: E402
from data_episodes import make_episode  # noqa: E402
from hdf5_fuzz import write_base  # noqa: E402
from lerobot_sets import FEATURES, write_set  # noqa: E402
from made_videos import write_video  # noqa: E402
from rlds_sets import record as rlds_record  # noqa: E402
from rlds_sets import write_set as write_rlds  # noqa: E402

from roboalign.episodes.rewrite import rewrite  # noqa: E402
from roboalign.episodes.robot_data import RobotData  # noqa: E402

RECIPE = TESTS.parent / "recipes" / "smoke.yaml"
LENGTHS = (6, 4, 5)
COUNTED = {"dtype": "int64", "shape": [1], "names": None}


@dataclass(frozen=True)
class Format:
    """A format: how to write a small sound one into a folder, and how it is read.

    `commands`: names of fuzz_commands.COMMANDS; a seed takes one of them. `share`: of the seeds.
    """

    make: Callable[[Path], None]
    commands: tuple[str, ...]
    share: int = 2


def lerobot_v2(version: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        numbered = dict.fromkeys(("frame_index", "episode_index", "index"), COUNTED)
        write_set(root, LENGTHS, features=FEATURES | numbered, version=version)
        begin = 0
        for episode, length in enumerate(LENGTHS):
            path = next(root.glob(f"data/*/episode_{episode:06d}.parquet"))
            table = pq.read_table(path).append_column("frame_index", pa.array(range(length)))
            table = table.append_column("index", pa.array(range(begin, begin + length)))
            pq.write_table(table, path)
            begin += length

    return make


def lerobot_v3(root: Path) -> None:
    """What our writer writes, and a second camera as video: episodes 0 and 1 in one file, 2 in another."""
    episodes = [make_episode("puck-push", seed, length, 16) for seed, length in enumerate(LENGTHS)]
    rewrite(RobotData("made", "test", lambda: iter(episodes)), root)
    (root / ".lock").unlink(missing_ok=True)
    key = "observation.images.wrist"
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"][key] = {"dtype": "video", "shape": [48, 48, 3], "names": None}
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    path.write_text(json.dumps(info))
    meta = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(meta).to_pylist()
    starts = (0.0, LENGTHS[0] / 10, 0.0)
    for number, (row, start, length) in enumerate(zip(rows, starts, LENGTHS)):
        row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": number // 2}
        row |= {f"videos/{key}/from_timestamp": start}
        row |= {f"videos/{key}/to_timestamp": start + length / 10}
    pq.write_table(pa.Table.from_pylist(rows), meta)
    for number, count in enumerate((sum(LENGTHS[:2]), LENGTHS[2])):
        video = root / info["video_path"].format(video_key=key, chunk_index=0, file_index=number)
        write_video(video, range(40 * number, 40 * number + count), fps=10)


def rlds(root: Path) -> None:
    shards = {f"train.tfrecord-0000{n}-of-00002": [rlds_record(3), rlds_record(4)] for n in (0, 1)}
    for number, rows in enumerate(shards.values()):
        for place, row in enumerate(rows):
            row["steps/action"] = [v + number + 10.0 * place for v in row["steps/action"]]
    write_rlds(root, shards)


def hdf5(layout: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        root.mkdir(parents=True)
        write_base(root / "demo.hdf5", layout, "gzip", "earliest")

    return make


def calvin(root: Path) -> None:
    root.mkdir(parents=True)
    for step in range(3, 13):
        np.savez_compressed(step_path(root, step), **step_arrays(step))
    annotate(root, record())
    np.save(root / "ep_start_end_ids.npy", np.array([[3, 9], [12, 12]]))


def picture(seed: int, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((48, 36), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


QUESTIONS = 8
SUFFIX = {"llava": ".json", "messages": ".jsonl", "sharegpt": ".parquet", "pairs": ".json"}


def questions(layout: str, number: int = QUESTIONS) -> Callable[[Path], None]:
    """So many records of a layout in one of the file types, the mixture file, and the pictures beside them."""

    def make(root: Path) -> None:
        (root / "images").mkdir(parents=True)
        for n in range(number):
            (root / "images" / f"{n}.jpg").write_bytes(picture(n))
        records = [question(layout, n) for n in range(number)]
        path = root / f"qa{SUFFIX[layout]}"
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        elif path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, records)) + "\n")
        else:
            path.write_text(json.dumps(records))
        source = {"name": "qa", "qa": str(path), "layout": layout, "images": str(root / "images")}
        mixture = {"name": "fuzz", "sources": [{**source, "count": number - 3}]}
        (root / "mixture.yaml").write_text(yaml.safe_dump(mixture))

    return make


def question(layout: str, n: int) -> dict:
    asked, reply, image = f"What is number {n}?", f"It is {n}.", f"{n}.jpg"
    if layout == "pairs":
        return {"id": f"q{n}", "image": image, "question": asked, "answer": reply}
    if layout == "messages":
        content = [{"type": "image"}, {"type": "text", "text": asked}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
        return {"id": f"q{n}", "images": [image], "messages": turns}
    roles = ("human", "gpt") if layout == "llava" else ("user", "assistant")
    turns = [
        {"from": roles[0], "value": f"<image>\n{asked}"},
        {"from": roles[1], "value": reply},
    ]
    return {"id": f"q{n}", "image": image, "conversations": turns}


def model(root: Path) -> None:
    source = Path(str(resources.files("roboalign"))) / "mllm" / "pretrained" / "tiny"
    shutil.copytree(source, root)
    for path in root.iterdir():
        path.chmod(0o644)


def recipe(root: Path) -> None:
    root.mkdir(parents=True)
    shutil.copy(RECIPE, root / "recipe.yaml")


SHRINK = ("arms=[sft,roboalign]", "rollout.max_steps=8")


def finished_run(folder: Path) -> Path:
    """A finished run of the shrunken smoke recipe in `folder`, made where it is not there (half a minute)."""
    if not (folder / "report" / "stage.json").is_file():
        command = [sys.executable, "-m", "roboalign", "run", str(RECIPE), "--out", str(folder)]
        for setting in SHRINK:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run_of(source: Path) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        shutil.copytree(finished_run(source), root)

    return make


READ = ("convert", "inspect")


def formats(run: Path) -> dict[str, Format]:
    """Every format by name. `run`: where a finished run is, or is to be made."""
    robot = {
        "lerobot-v2.0": lerobot_v2("v2.0"),
        "lerobot-v2.1": lerobot_v2("v2.1"),
        "lerobot-v3.0": lerobot_v3,
        "rlds": rlds,
        "robomimic": hdf5("robomimic"),
        "libero": hdf5("libero"),
        "calvin": calvin,
    }
    found = {name: Format(make, READ) for name, make in robot.items()}
    found |= {f"qa-{layout}": Format(questions(layout), ("mix",), 1) for layout in SUFFIX}
    found["model"] = Format(model, ("load-model",))
    found["recipe"] = Format(recipe, ("plan",), 1)
    found["run"] = Format(
        run_of(run), ("table", "compare", "policy", "probe", "export", "report", "again"), 4
    )
    return found


def rows_in_hdf5(path: Path, drop: int) -> None:
    """Remove a row of one demonstration's actions."""
    with h5py.File(path, "r+") as file:
        demo = file[f"data/demo_{drop % 2}"]
        kept = np.delete(demo["actions"][:], drop % 3, axis=0)
        del demo["actions"]
        demo["actions"] = kept
