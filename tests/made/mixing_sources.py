"""Small sources of every kind, written as users have them."""

import io
import json
from pathlib import Path

import numpy as np
from data_episodes import make_episode
from PIL import Image

from roboalign.conversations.conversation import Conversation, Turn, write_conversations
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.mixture.config import MixtureConfig


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A smooth random picture: no two seeds look alike."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def llava_record(id: str, image: str, question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": turns}


def write_qa(
    folder: Path, count: int, first: int = 0, suffix: str = ".json", pictures: int | None = None
) -> Path:
    """`count` records, each with a picture of its own, or sharing `pictures` of them."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [first + (n % pictures if pictures else n) for n in range(count)]
    for seed in set(shown):
        (folder / f"{seed}.jpg").write_bytes(encoded(picture(seed), "JPEG", quality=92))
    records = [
        llava_record(
            f"q{first + n}", f"{seed}.jpg", f"What is number {first + n}?", f"It is {first + n}."
        )
        for n, seed in enumerate(shown)
    ]
    lines = (
        "\n".join(map(json.dumps, records)) + "\n" if suffix == ".jsonl" else json.dumps(records)
    )
    (folder / f"qa{suffix}").write_text(lines)
    return folder / f"qa{suffix}"


def write_talks(
    folder: Path, images: list[bytes], split: str = "train", prefix: str = "talk"
) -> Path:
    """A shard of conversations, one an image, each of an episode of its own."""
    reply = "<think>I look.</think><answer>answer it</answer>"
    turn = Turn("reasoning", "text", "think", "What is there?", reply, "it")
    folder.mkdir(parents=True, exist_ok=True)
    name = "train-00000.parquet" if split == "train" else f"{split}.parquet"
    write_conversations(
        folder / name,
        [
            Conversation(f"{prefix}-{n}", f"{prefix}/episode-{n}", 0, "t", (image,), (turn,))
            for n, image in enumerate(images)
        ],
    )
    return folder


def write_robot(folder: Path, episodes: int = 4, steps: int = 20) -> Path:
    made = [make_episode("puck-push", seed=seed, steps=steps) for seed in range(episodes)]
    rewrite(RobotData("made", "test", lambda: iter(made)), folder)
    return folder


def settings(*sources: dict, **more) -> MixtureConfig:
    return MixtureConfig.model_validate({"name": "made", "sources": list(sources), **more})


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}
