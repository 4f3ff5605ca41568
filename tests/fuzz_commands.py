"""The public commands on a folder, each with what it says of the values that came out."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from roboalign.cli.main import main
from roboalign.core.command import exit_status
from roboalign.core.files import hash_file
from roboalign.core.outcomes import Fault
from roboalign.episodes.open import open_robot_data

Digest = dict[str, str]
"""What came out: a value's name -> the hash of it."""


@dataclass
class Done:
    """How a command ended: exit status, what it printed, and what came out of it."""

    status: int
    output: str
    error: str
    digest: Digest = field(default_factory=dict)


def run(root: Path, out: Path, command: str) -> Done:
    """Run a command of COMMANDS on `root`; it may write to `out`. Whatever it raises comes through."""
    said, wrong = io.StringIO(), io.StringIO()
    digest: Digest = {}

    def work() -> int:
        status, found = COMMANDS[command](root, out)
        digest.update(found)
        return status

    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        try:
            status = exit_status(work)
        except SystemExit as end:
            status = int(end.code or 0)
    if command in PRINTED and not status:
        digest["printed"] = hash_of(said.getvalue().replace(str(out), "OUT").encode())
    return Done(status, said.getvalue(), wrong.getvalue(), digest)


def hash_of(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else str(part).encode())
        found.update(b"\0")
    return found.hexdigest()[:16]


def convert(root: Path, out: Path) -> tuple[int, Digest]:
    """Every episode of what was written, by its place in the source."""
    status = main(["data", "convert", str(root), "--out", str(out)])
    return status, {} if status else dict(episodes_of(out))


def episodes_of(folder: Path) -> Iterator[tuple[str, str]]:
    for item in open_robot_data(folder).read():
        assert not isinstance(item, Fault), f"what was written is not read: {item}"
        frames = (item.frame(name, t).tobytes() for name in item.images for t in range(len(item)))
        place = re.sub(r"-[0-9a-f]{8,}$", "", item.episode_id)  # without the digest of its actions
        numbers = (item.actions.tobytes(), item.state.tobytes(), item.fps)
        yield place, hash_of(item.instruction, sorted(item.images), *numbers, *frames)


def inspect(root: Path, out: Path) -> tuple[int, Digest]:
    return main(["data", "inspect", str(root), "--out", str(out / "page.html")]), {}


def mix(root: Path, out: Path) -> tuple[int, Digest]:
    """Every conversation of the shards, by its first question; pictures as pixels."""
    out = out / "mixture"
    arguments = ["data", "mix", str(root / "mixture.yaml"), "--out", str(out), "--workers", "1"]
    status = main(arguments)
    found: Digest = {}
    for path in [] if status else sorted(out.glob("train-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            files = [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
            pixels = [np.asarray(image.convert("RGB")).tobytes() for image in files]
            texts = [(message["role"], message["content"]) for message in row["chat"]]
            found[texts[0][1]] = hash_of(texts, *pixels)
    return status, found


def load_model(root: Path, out: Path) -> tuple[int, Digest]:
    from roboalign.mllm.load import load_mllm

    mllm = load_mllm(root)
    weights = [tensor.numpy().tobytes() for tensor in mllm.model.state_dict().values()]
    text = mllm.tokenizer("Where is the red cup?")["input_ids"]
    return 0, {"weights": hash_of(*weights), "tokens": hash_of(text)}


def plan(root: Path, out: Path) -> tuple[int, Digest]:
    return main(["plan", str(root / "recipe.yaml")]), {}


def table(root: Path, out: Path) -> tuple[int, Digest]:
    return main(["table", str(root)]), {}


def compare(root: Path, out: Path) -> tuple[int, Digest]:
    return main(["compare", str(root), "--arm", "sft", "--arm", "roboalign"]), {}


def policy(root: Path, out: Path) -> tuple[int, Digest]:
    """The action chunk of one fixed observation."""
    from roboalign.vla.policy import Policy

    loaded = Policy.load(root / "seed-0" / "head" / "roboalign" / "policy")
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for name in loaded.view.cameras
    }
    width = 0 if loaded.state_stats is None else loaded.head.shape.state_dim
    seen = SimpleNamespace(
        images=images, instruction="unlock the door", state=np.zeros(width, np.float32)
    )
    return 0, {"actions": hash_of(loaded.act(seen, ("fuzz", 0, 0)).tobytes())}


def probe(root: Path, out: Path) -> tuple[int, Digest]:
    arguments = ["probe", str(root), "--out", str(out / "probe.json"), "--arm", "roboalign"]
    status = main(arguments)
    if status:
        return status, {}
    found = json.loads((out / "probe.json").read_text())
    return 0, {"accuracy": hash_of(json.dumps(found.get("accuracy", found), sort_keys=True))}


def export(root: Path, out: Path) -> tuple[int, Digest]:
    status = main(["export", "verl", str(root), "--out", str(out / "verl")])
    kept = (".parquet", ".safetensors")
    return status, {
        path.name: hash_file(path) for path in out.rglob("*") if path.suffix in kept and not status
    }


def report(root: Path, out: Path) -> tuple[int, Digest]:
    return again(root, out, "report")


def again(root: Path, out: Path, verb: str = "run") -> tuple[int, Digest]:
    """The run's own command once more: what is done stays, what is damaged is refused or done again."""
    status = main([verb, str(root / "recipe.yaml"), "--out", str(root)])
    if status:
        return status, {}
    found = {
        str(path.relative_to(root)): hash_file(path)
        for path in sorted(root.rglob("*.safetensors"))
        if ".outdated-" not in str(path) and not {"checkpoints", "features"} & set(path.parts)
    }
    for path in sorted(root.rglob("episodes.jsonl")):
        if ".outdated-" not in str(path):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = sorted((r["task"], r["seed"], r["success"], r["steps"]) for r in rows)
            found[str(path.relative_to(root))] = hash_of(kept)
    return 0, found


PRINTED = ("table", "compare", "plan")
"""Commands whose printed text is what came out."""
COMMANDS: dict[str, Callable[[Path, Path], tuple[int, Digest]]] = {
    "convert": convert,
    "inspect": inspect,
    "mix": mix,
    "load-model": load_model,
    "plan": plan,
    "table": table,
    "compare": compare,
    "policy": policy,
    "probe": probe,
    "export": export,
    "report": report,
    "again": again,
}
