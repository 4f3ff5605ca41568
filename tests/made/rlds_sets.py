"""Small sound RLDS data sets: write them, and change one thing in them."""

import io
import json
from pathlib import Path

from PIL import Image
from tfrecords import example, framed


def numbers(*sizes, dtype="float32", **more):
    shape = {"dimensions": [str(size) for size in sizes]}
    return {"tensor": {"shape": shape, "dtype": dtype, "encoding": "none"} | more}


def image(*sizes):
    return {"image": {"shape": {"dimensions": [str(size) for size in sizes]}, "dtype": "uint8"}}


def tree(children: dict) -> dict:
    return {"featuresDict": {"features": children}}


TEXT = {"text": {}}
STEPS = {
    "action": numbers(2),
    "reward": numbers(),
    "language_instruction": TEXT,
    "observation": tree({"state": numbers(3), "front": image(4, 6, 3), "depth": image(4, 6, 1)}),
}


def picture(shade: int, kind: str = "PNG", size=(6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, format=kind)
    return buffer.getvalue()


def record(steps: int = 3, **changes) -> dict:
    """One episode: action [t, -t], state [t, t, t], shade 10 t."""
    features = {
        "steps/action": [float(v) for t in range(steps) for v in (t, -t)],
        "steps/observation/state": [float(t) for t in range(steps) for _ in range(3)],
        "steps/reward": [0.0] * steps,
        "steps/language_instruction": [b"push the block"] * steps,
        "steps/observation/front": [picture(10 * t) for t in range(steps)],
        "steps/observation/depth": [picture(0)] * steps,
    }
    features |= {f"steps/{name}": value for name, value in changes.items()}
    return {name: value for name, value in features.items() if value is not None}


def write_set(
    folder: Path, shards: dict[str, list[dict]], *, name="bridge_x", steps=STEPS, **info
) -> Path:
    """`shards`: file name without the set's name -> its records."""
    folder.mkdir(exist_ok=True)
    features = tree(
        {
            "steps": {"sequence": {"feature": tree(steps)}},
            "episode_metadata": tree({"file_path": TEXT}),
        }
    )
    (folder / "features.json").write_text(json.dumps(features))
    splits = [
        {"name": shard.split(".")[0], "shardLengths": [str(len(rows))]}
        for shard, rows in shards.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps({"name": name, "splits": splits} | info))
    for shard, rows in shards.items():
        (folder / f"{name}-{shard}").write_bytes(b"".join(framed(example(row)) for row in rows))
    return folder


ONE = "train.tfrecord-00000-of-00001"
