"""Ask a model the items of a task, and keep one record for each.

The folder of a model holds model.json (the model, the settings and the versions that may change a
reply). The folder of a task in it holds task.json (protocol and data) and, for each control,
CONTROL.jsonl with a record per item. A killed command continues where it stopped, with the batches
that it would have had.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from pydantic import Field

from roboalign import __version__
from roboalign.bench.items import BenchItem, Control, controlled, images_under
from roboalign.bench.judge import BenchJudge, require_judge
from roboalign.bench.presets import BenchPreset, Protocol
from roboalign.bench.reading import ANSWER_LABELS, Extent, chance_of, grade, mask_of
from roboalign.bench.rows import bench_rows
from roboalign.bench.tasks.base import BenchTask
from roboalign.bench.tasks.registry import find_protocol
from roboalign.conversations.prompts import Mode
from roboalign.conversations.styles.base import PromptStyle, StyleName
from roboalign.conversations.styles.registry import STYLES, style_of
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, check_output, hash_tree, locked, write_json
from roboalign.core.progress import Progress
from roboalign.core.state import State, read_records, read_state
from roboalign.episodes.pictures import rgb_of_file, size_of_file
from roboalign.mllm.encode import Encoded, encode_prompt, end_ids
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm
from roboalign.mllm.placement import IMAGE_MARK
from roboalign.mllm.processors import bound_pixels

MODEL_FILE, TASK_FILE = "model.json", "task.json"
ANOTHER_FOLDER = "pass --out with another folder"


class BenchConfig(Config):
    """How a model is asked. All of it is part of the result."""

    preset: BenchPreset = "lmms-eval"
    """The protocol: wording, coordinates and score; see how-to/measure-an-mllm.md."""
    mode: Mode = "direct"
    """Whether the model answers at once or reasons first."""
    prompts: StyleName | None = None
    """The model's prompt style. Without it the one that the model names, and for a model that is
    not of this package `paper`, which leaves a direct question as the protocol words it."""
    max_new_tokens: int = Field(1024, ge=1, le=1_000_000)
    """Tokens after which a reply is cut; a cut reply is counted, and scored as it is."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Items that are generated at once."""
    min_pixels: int | None = Field(None, ge=1)
    """Fewest pixels to which the processor resizes an image, for Qwen's models; without it the
    folder's."""
    max_pixels: int | None = Field(None, ge=1)
    """Most pixels to which the processor resizes an image, for Qwen's models; without it the
    folder's."""
    limit: int = Field(0, ge=0)
    """The first items of each task alone; 0 takes all."""


class ReplyState(State):
    """What later commands rely on in a record."""

    id: str
    item: str
    images: str
    question: str
    reply: str
    finished: bool
    group: str
    subgroup: str
    read: str
    reason: str
    score: float
    points: int
    outside: int
    chance: float | None


class ModelState(State):
    """What later commands rely on in model.json."""

    name: str
    model: str
    settings: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class BenchModel:
    """A model, and how it is asked."""

    name: str
    mllm: Mllm
    config: BenchConfig
    judge: BenchJudge | None = None
    """Scores open answers."""

    @property
    def style(self) -> PromptStyle:
        """Return the prompt style; see `BenchConfig.prompts`."""
        mllm = self.mllm
        own = style_of(mllm.prompts) if mllm.prompts or mllm.vocabulary else STYLES["paper"]
        return STYLES[self.config.prompts] if self.config.prompts else own

    def bounded(self) -> "BenchModel":
        """Set the bounds of the processor's resize. Raises RoboAlignError if it has none."""
        low, high = self.config.min_pixels, self.config.max_pixels
        if low or high:
            try:
                bound_pixels(self.mllm.processor, low, high)
            except RoboAlignError as error:
                raise RoboAlignError(
                    error.problem,
                    where="--min-pixels, --max-pixels",
                    fix="leave them out, or give the first not above the second",
                ) from None
        return self

    def identity(self) -> dict[str, Any]:
        """Return model.json."""
        mllm = self.mllm
        size = getattr(mllm.processor.image_processor, "size", None)
        return {
            "name": self.name,
            "model": hash_tree(mllm.folder) if mllm.folder else "",
            "type": mllm.model.config.model_type,
            "settings": {
                **self.config.model_dump(mode="json"),
                "prompts": self.style.name,
                "device": mllm.device.type,
                "dtype": str(mllm.model.dtype).removeprefix("torch."),
                "images": dict(size) if size is not None else {},
                "system_prompt": "the chat template's",
                "temperature": 0,
            },
            "versions": {
                "roboalign": __version__,
                "torch": torch.__version__.partition("+")[0],
                "transformers": transformers.__version__,
            },
        }


def bench_model(
    asked: BenchModel,
    tasks: Iterable[tuple[BenchTask, Path]],
    controls: Sequence[Control],
    folder: Path,
) -> dict[str, dict[Control, list[dict[str, Any]]]]:
    """Ask what `folder` lacks, and return the records of every task and control.

    Raises RoboAlignError if the folder holds other replies, or if a file cannot be used.
    """
    check_output(folder, marks=[MODEL_FILE])
    with locked(folder):
        _require_same(folder / MODEL_FILE, asked.identity(), ModelState)
        found: dict[str, dict[Control, list[dict[str, Any]]]] = {}
        for task, data in tasks:
            protocol = find_protocol(task, asked.config.preset)
            items = items_of(task, data, asked.config.limit)
            place = folder / task.name
            described: dict[str, Any] = {
                "task": task.name,
                "protocol": protocol.described(),
                "items": len(items),
                "data": _digest(*(item_digest(item) for item in items)),
            }
            if any(item.kind == "judged" for item in items):
                described["judge"] = require_judge(asked.judge, task.title).identity()
            _require_same(place / TASK_FILE, described, State)
            found[task.name] = {
                control: _ask_all(asked, task, protocol, items, control, place)
                for control in controls
            }
        return found


def items_of(task: BenchTask, data: Path, limit: int = 0) -> list[BenchItem]:
    """Return the items of a task, the first `limit` of them. Raises RoboAlignError if two have one
    id."""
    items: dict[str, BenchItem] = {}
    for row in bench_rows(data, task.files, task.columns):
        item = task.item(row)
        if item.id in items:
            raise RoboAlignError(
                f"two items have the id {item.id}",
                where=row.where,
                fix="keep one copy of each file of the benchmark in the folder",
            )
        items[item.id] = item
        if len(items) == limit:
            break
    if not items:
        raise RoboAlignError(f"no item of {task.title}", where=str(data), fix="download it again")
    return list(items.values())


def item_digest(item: BenchItem) -> str:
    """Return a hash of all that an item is, its images included."""
    parts = (item.text, item.answer, item.letters, repr(item.polygon), repr(dict(item.more)))
    return _digest(*parts, *item.images, item.mask or b"")[:16]


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _require_same(path: Path, mine: dict[str, Any], kind: type[State]) -> None:
    """Write what identifies the replies of a folder. Raises RoboAlignError if it holds others."""
    if not path.is_file():
        write_json(path, mine)
        return
    before = read_state(path, kind, fix=ANOTHER_FOLDER)
    differ = [key for key in mine if before.get(key) != mine[key]]
    if differ:
        said = "; ".join(_difference(key, before.get(key), mine[key]) for key in differ)
        raise RoboAlignError(
            f"its replies were made otherwise: {said}", where=str(path), fix=ANOTHER_FOLDER
        )


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return "; ".join(
            _difference(f"{key}.{name}", before.get(name), now.get(name)) for name in names
        )
    return f"`{key}` {str(before)[:60]} then, {str(now)[:60]} now"


def _ask_all(
    asked: BenchModel,
    task: BenchTask,
    protocol: Protocol,
    items: Sequence[BenchItem],
    control: Control,
    folder: Path,
) -> list[dict[str, Any]]:
    """Return the records of one control, in the order of the items; items that it cannot ask have
    none."""
    path = folder / f"{control}.jsonl"
    chosen = [item for item in (controlled(item, control) for item in items) if item is not None]
    if not chosen:
        return []
    done = {row["id"]: row for row in read_records(path, ReplyState)}
    size = asked.config.batch_size
    label = f"{asked.name} {task.name} {control}"
    with Progress(label, len(chosen), start=len(done)) as progress:
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            missing = [item.id for item in batch if item.id not in done]
            if not missing:
                continue
            # The whole batch, as before a kill: another batch may round otherwise.
            for record in _ask(asked, protocol, batch, control):
                if record["id"] in missing:
                    append_jsonl(path, record)
                    done[record["id"]] = record
            progress.advance(len(missing))
    return [done[item.id] for item in chosen]


def _ask(
    asked: BenchModel, protocol: Protocol, batch: Sequence[BenchItem], control: Control
) -> list[dict[str, Any]]:
    mllm, config = asked.mllm, asked.config
    questions = [question_of(item, protocol, asked.style, config.mode) for item in batch]
    encoded = [_encoded(mllm, item, question, control) for item, question in zip(batch, questions)]
    generation = generate(
        mllm,
        encoded,
        max_new_tokens=config.max_new_tokens,
        temperature=0.0,
        stop="</answer>",
        max_rows=len(batch),
    )
    records = []
    for item, question, (ids,), (finished,) in zip(
        batch, questions, generation.tokens, generation.finished
    ):
        reply = reply_text(mllm, ids)
        records.append(
            {
                "id": item.id,
                "item": item_digest(item),
                "images": _digest(*item.images)[:16],
                "question": _digest(question)[:16],
                "group": item.group,
                "subgroup": item.subgroup,
                "answer": item.answer,
                "reply": reply,
                "finished": finished,
                "tokens": len(ids),
                **scored(asked, item, protocol, reply),
            }
        )
    return records


def reply_text(mllm: Mllm, ids: Sequence[int]) -> str:
    """Return generated ids as text, special tokens included, without the end token."""
    said = ids[:-1] if ids and ids[-1] in end_ids(mllm) else ids
    return str(mllm.tokenizer.decode(list(said), skip_special_tokens=False))


def question_of(item: BenchItem, protocol: Protocol, style: PromptStyle, mode: Mode) -> str:
    """Return the question that the model reads: the protocol's, as the model's prompt style asks it.

    A marker of an image in a data set's text is left out: the images come first.
    """
    text = protocol.wording(item).replace(IMAGE_MARK, "")
    return style.asked(text, mode, ANSWER_LABELS[item.kind])


def scored(asked: BenchModel, item: BenchItem, protocol: Protocol, reply: str) -> dict[str, Any]:
    """Return how a reply was read and scored, and the chance of a guess."""
    size = size_of_file(item.images[0])
    seen = seen_size(asked.mllm, size) if protocol.convention == "seen-pixels" else size
    mode = asked.config.mode
    reading = grade(reply, item, protocol, asked.style, mode, size, seen, asked.judge)
    mask = mask_of(item, protocol.threshold) if item.kind == "point" and item.mask else None
    return {**reading.record(), "chance": chance_of(item, mask)}


def seen_size(mllm: Mllm, size: Extent) -> Extent:
    """Return (width, height) of an image after the processor's resize.

    Raises RoboAlignError if the model's processor cuts tiles instead of resizing.
    """
    if ("seen", size) not in mllm.cache:
        blank = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        processor = mllm.processor.image_processor
        made = processor([[blank]], return_tensors="pt", input_data_format="channels_last")
        if "image_grid_thw" not in made:
            raise RoboAlignError(
                f"models of type {mllm.model.config.model_type} have no pixels of a resized image",
                where="--preset qwen2.5-vl",
                fix="choose the preset of the coordinates that the model was trained on",
            )
        _, rows, columns = made["image_grid_thw"][0].tolist()
        mllm.cache["seen", size] = (columns * processor.patch_size, rows * processor.patch_size)
    found: Extent = mllm.cache["seen", size]
    return found


def _encoded(mllm: Mllm, item: BenchItem, question: str, control: Control) -> Encoded:
    try:
        images = tuple(rgb_of_file(image) for image in item.images)
        return encode_prompt(mllm, question, images_under(images, control))
    except RoboAlignError as error:
        where = f"item {item.id}, {error.where}" if error.where else f"item {item.id}"
        raise RoboAlignError(error.problem, where=where, fix=error.fix) from None
