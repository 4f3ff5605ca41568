"""The parts of `scale.py`, each through the product's own code. A part yields rows as it goes."""

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scale_model import (
    Shape,
    action_tokenizer,
    build,
    conversations,
    patches_of,
    picture,
    random_chunks,
    rl_prompts,
    training_pass,
    work_of,
)
from transformers import TrainerCallback
from transformers.utils import is_liger_kernel_available

from roboalign.actions.normalize import ActionStats
from roboalign.align import sft
from roboalign.align.dataset import Conversations
from roboalign.align.grpo import train as grpo
from roboalign.align.trained import freeze_vision
from roboalign.mllm.encode import IGNORED, collate, encode_conversation, encode_prompt
from roboalign.mllm.hidden import truncate_layers
from roboalign.mllm.load import Mllm
from roboalign.vla.features import View
from roboalign.vla.frames import Frames
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.policy import Policy
from roboalign.vla.store import SHARD_FORMAT, FeatureStore
from roboalign.vla.train import HeadTrainConfig, fit

WARM = 2  # steps that are not counted
NEVER = 10**9
CAMERAS = ("front", "wrist")
CAMERA_SIDE = 224


@dataclass(frozen=True)
class Setting:
    """What a measurement runs on."""

    shape: Shape
    device: torch.device
    rate: float
    """Matrix products of the device, operations a second, in the type that the part computes in."""
    steps: int
    """Measured steps, rounds or calls."""
    compile: bool
    """Whether compiled code is measured beside the eager."""
    workers: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights that are not trained in float32."""
        return torch.bfloat16 if self.on_gpu else torch.float32


@dataclass
class Row:
    """One line of the result: values in `unit`, of which the median is told."""

    part: str
    what: str
    unit: str
    values: list[float]
    peak: int | None
    """Bytes on the GPU at the most; None without one."""
    note: str = ""
    more: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "median": statistics.median(self.values) if self.values else None}


def wait(device: torch.device) -> None:
    """Until what was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def begin(device: torch.device) -> None:
    """Give back what the last measurement left, and start counting memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_of(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def matrix_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, dict[int, float]]:
    """Operations a second of products of square matrices: the best, and the median of 5 of each size."""
    sizes, found = ((4096, 8192, 16384) if device.type == "cuda" else (512, 1024)), {}
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times = [timed(lambda a=a, b=b: a @ b, device) for _ in range(WARM + 5)][WARM:]
        found[size] = 2 * size**3 / statistics.median(times)
    return max(found.values()), found


def fits(setting: Setting, most: int, run: Callable[[int], list[Row]]) -> list[Row]:
    """The rows of `run(micro-batch)` for the largest power of two up to `most` that fits into memory."""
    micro = 1 << (most.bit_length() - 1)
    while True:
        try:
            return run(micro)
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
        micro //= 2
        begin(setting.device)


class Ticks(TrainerCallback):
    """The time at the end of each update, and what the trainer had counted by then."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.at = trainer, [(time.perf_counter(), dict(trainer.counters))]

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        wait(self.trainer.args.device)
        self.at.append((time.perf_counter(), dict(self.trainer.counters)))


# SFT ------------------------------------------------------------------------------------------------------------------


def sft_part(setting: Setting) -> Iterator[Row]:
    """Updates of `train_sft`'s trainer, from reading the samples to the optimizer's step."""
    weights = [
        ("float32 weights, bfloat16 products", torch.float32),
        ("bfloat16 weights", torch.bfloat16),
    ]
    ways = ["eager", *(["compile"] if setting.compile else [])]
    ways += ["liger"] if setting.on_gpu and is_liger_kernel_available() else []
    for name, dtype in weights if setting.on_gpu else [("float32", torch.float32)]:
        for way in ways:
            yield from attempt(
                "sft",
                f"{name}, {way}",
                setting,
                lambda name=name, dtype=dtype, way=way: fits(
                    setting,
                    setting.shape.batch,
                    lambda micro: [_sft(setting, name, dtype, way, micro)],
                ),
            )


def _sft(setting: Setting, name: str, dtype: torch.dtype, way: str, micro: int) -> Row:
    shape, updates = setting.shape, WARM + setting.steps
    mllm = build(shape, dtype, setting.device)
    data = conversations(shape, updates * shape.batch, turns=_turns(mllm, shape))
    config = sft.SftConfig(
        max_steps=updates,
        batch_size=shape.batch,
        micro_batch_size=micro,
        bf16=setting.on_gpu,
        workers=setting.workers,
        gradient_checkpointing=bool(shape.preset),
        save_every=NEVER,
        log_every=NEVER,
        compile=way == "compile",
        liger=way == "liger",
    )
    order = sft.sample_order(sft.lengths_of(data)[0], shape.batch, updates, seed=0)
    freeze_vision(mllm.model)
    work = work_of(mllm.model)
    encoded = [Conversations(mllm, data)[index] for index in order[WARM * shape.batch :]]
    lengths, patches = (
        [len(one.input_ids) for one in encoded],
        [patches_of(mllm, one) for one in encoded],
    )
    answers = sum(int((one.labels != IGNORED).sum()) for one in encoded)
    needed = training_pass(work, lengths, answers, patches, frozen_vision=True) / setting.steps
    with tempfile.TemporaryDirectory() as out:
        trainer = sft.build_sft_trainer(mllm, data, config, Path(out), order, updates, "sft")
        trainer.args.save_strategy = "no"  # its last update would write a checkpoint
        ticks = Ticks(trainer)
        trainer.add_callback(ticks)
        trainer.run()
    pairs = list(zip(ticks.at[WARM:], ticks.at[WARM + 1 :]))
    rates = [
        (after[1]["tokens"] - before[1].get("tokens", 0)) / (after[0] - before[0])
        for before, after in pairs
    ]
    used = (
        needed / statistics.median(after[0] - before[0] for before, after in pairs) / setting.rate
    )
    padded = sum(max(group) * len(group) for group in _groups(lengths, micro)) / sum(lengths) - 1
    note = (
        f"{used:.0%} of the matrix rate; {statistics.mean(lengths):.0f} tokens a sample, {shape.batch} an update, "
        f"{micro} a pass, padding {padded:.1%}"
    )
    return Row(
        "sft",
        f"{name}, {way}",
        "tokens/s",
        rates,
        peak_of(setting.device),
        note,
        {
            "utilisation": used,
            "operations_an_update": needed,
            "micro_batch_size": micro,
            "padding": padded,
        },
    )


def _turns(mllm: Mllm, shape: Shape) -> int:
    """Turns after which a sample has about `shape.tokens` tokens."""
    image = picture(shape.image, shape.image, 0)
    short, long = (
        statistics.mean(
            len(
                encode_conversation(
                    mllm,
                    [{"question": t.question, "answer": t.answer} for t in c.turns][:1] * turns,
                    [image],
                ).input_ids
            )
            for c in conversations(shape, 16, turns=1)
        )
        for turns in (1, 2)
    )
    return max(1, round(1 + (shape.tokens - short) / (long - short)))


def _groups(values: list[int], size: int) -> list[list[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


# GRPO -----------------------------------------------------------------------------------------------------------------


def rollout_part(setting: Setting) -> Iterator[Row]:
    """A rollout and the four updates on it; the first rollout warms up and is not counted."""
    yield from attempt(
        "rollout",
        "GRPO, 5 answers a prompt, KL to a reference model",
        setting,
        lambda: fits(
            setting, max(1, setting.shape.prompts // 4), lambda micro: _rollout(setting, micro)
        ),
    )


def _rollout(setting: Setting, micro: int) -> list[Row]:
    shape, rounds, updates = setting.shape, max(2, setting.steps // 4), 4
    mllm = build(shape, setting.dtype, setting.device)
    asked = rl_prompts(shape, shape.prompts)
    micro = next(
        size
        for size in range(min(micro, shape.prompts // updates), 0, -1)
        if shape.prompts // updates % size == 0
    )
    config = grpo.RlConfig(
        prompts_per_rollout=shape.prompts,
        prompts_per_update=shape.prompts // updates,
        micro_batch_size=micro,
        updates=(1 + rounds) * updates,
        max_new_tokens=shape.answer,
        bf16=setting.on_gpu,
        save_every=NEVER // updates,
        log_every=NEVER,
    )
    order = list(range(shape.prompts)) * (1 + rounds)
    with tempfile.TemporaryDirectory() as out:
        trainer = grpo.build_grpo_trainer(
            mllm,
            action_tokenizer(shape),
            asked,
            (),
            config,
            Path(out),
            order,
            config.updates or 0,
            "rl",
        )
        trainer.args.save_strategy = "no"
        ticks = Ticks(trainer)
        trainer.add_callback(ticks)
        trainer.run()
    pairs = list(zip(ticks.at[updates::updates], ticks.at[2 * updates :: updates]))
    scale = 512 / shape.prompts
    times: dict[str, list[float]] = {
        "sampling": [],
        "scoring with the reference": [],
        "four updates": [],
    }
    tokens = []
    for (began, before), (ended, after) in pairs:
        used = {name: after[name] - before[name] for name in after}
        times["sampling"].append(scale * used["seconds_generation"])
        times["scoring with the reference"].append(scale * used["seconds_reference"])
        rest = ended - began - used["seconds_generation"] - used["seconds_reference"]
        times["four updates"].append(scale * rest)
        tokens.append(used["generated_tokens"] / used["answers"])
    note = (
        f"{shape.prompts} prompts measured, times {scale:.1f}; answers of {statistics.mean(tokens):.0f} tokens, "
        f"{micro} prompts a pass"
    )
    return [
        Row("rollout", f"512 prompts: {name}", "s", values, peak_of(setting.device), note)
        for name, values in times.items()
    ]


# The head -------------------------------------------------------------------------------------------------------------


class Enough(Exception):
    """Ends `fit` before it measures and writes: a checkpoint of the whole head would take longer than the steps."""


class Watched(Frames):
    """Training frames that note when each step begins, and where `recompute` is set, compute their hidden states."""

    def watch(
        self, limit: int, recompute: Callable[[int], tuple[torch.Tensor, torch.Tensor]] | None
    ) -> list[float]:
        """Stop when step `limit` begins; returns the list of the times."""
        self.times, self.limit, self.recompute = [], limit, recompute
        return self.times

    def batch(self, frames: np.ndarray, device: torch.device) -> Any:
        wait(device)
        self.times.append(time.perf_counter())
        if len(self.times) == self.limit:
            raise Enough
        if self.recompute is None:
            return super().batch(frames, device)
        states, mask = self.recompute(len(frames))
        return states.float(), mask, None, self.actions[torch.from_numpy(frames)].to(device)


def head_part(setting: Setting) -> Iterator[Row]:
    """Steps of `train_head`: hidden states from disk, against the frozen backbone's forward pass at every step."""
    yield from attempt("head", "head", setting, lambda: _head(setting))


def _head(setting: Setting) -> list[Row]:
    shape, device = setting.shape, setting.device
    mllm = build(shape, setting.dtype, device)
    truncate_layers(mllm, shape.layer)
    view, config = (
        _view(setting, shape.layer),
        HeadTrainConfig(
            batch_size=32,
            draws=1,
            precision="bfloat16" if setting.on_gpu else "float32",
            steps=NEVER,
            checkpoint_every=NEVER,
            eval_every=NEVER,
        ),
    )
    head = _make_head(setting, mllm)
    prompts = [
        view.prompt(_observation(setting, i).images, "open the drawer")
        for i in range(config.batch_size)
    ]
    states, mask = view.encode(mllm, prompts)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tensors = {"tokens": states[mask].cpu(), "lengths": mask.sum(1).cpu()}
        save_file(tensors, Path(folder) / "features.safetensors", {"format": SHARD_FORMAT})
        actions = torch.from_numpy(random_chunks(shape, config.batch_size))
        sides = {
            "hidden states kept on disk": None,
            "hidden states computed at every step": lambda count: view.encode(
                mllm, prompts[:count]
            ),
        }
        for what, recompute in sides.items():
            begin(device)
            frames = Watched(FeatureStore([Path(folder) / "features.safetensors"]), actions, None)
            times = frames.watch(WARM + setting.steps + 1, recompute)
            with contextlib.suppress(Enough):
                fit(head, frames, frames, config, Path(folder) / what, seed=0)
            rates = [1 / (after - before) for before, after in zip(times[WARM:], times[WARM + 1 :])]
            parameters = sum(p.numel() for p in head.parameters())
            note = f"{parameters / 1e6:.1f}M parameters, batch 32, {states.shape[1]} tokens of width {states.shape[2]}"
            rows.append(Row("head", what, "steps/s", rates, peak_of(device), note))
    return rows


def _make_head(setting: Setting, mllm: Mllm) -> FlowMatchingHead:
    shape, width = setting.shape, mllm.model.config.get_text_config().hidden_size
    with torch.device(setting.device):
        return FlowMatchingHead(
            HeadConfig(preset=shape.head),  # type: ignore[arg-type]
            HeadShape(
                vlm_width=width, action_dim=shape.action_dim, state_dim=0, horizon=shape.horizon
            ),
        )


def _view(setting: Setting, layer: int) -> View:
    return View(layer=layer, cameras=CAMERAS, dtype="bfloat16" if setting.on_gpu else "float16")


def _observation(setting: Setting, seed: int) -> Any:
    side = CAMERA_SIDE if setting.shape.preset else setting.shape.image
    images = {
        camera: picture(side, side, 2 * seed + number) for number, camera in enumerate(CAMERAS)
    }
    return SimpleNamespace(
        images=images, state=np.zeros(0, np.float32), instruction="open the drawer"
    )


# The policy -----------------------------------------------------------------------------------------------------------


def act_part(setting: Setting) -> Iterator[Row]:
    """One observation to one chunk: `Policy.act`, from the images on."""
    for truncated in (False, True):
        name = f"layers up to {setting.shape.layer}" if truncated else "all layers"
        yield from attempt(
            "act",
            name,
            setting,
            lambda truncated=truncated, name=name: _act(setting, name, truncated),
        )


def _act(setting: Setting, name: str, truncated: bool) -> list[Row]:
    shape, device = setting.shape, setting.device
    mllm = build(shape, setting.dtype, device)
    layer = shape.layer if truncated else mllm.model.config.get_text_config().num_hidden_layers
    if truncated:
        truncate_layers(mllm, layer)  # as Policy.load does
    stats = ActionStats.fit(random_chunks(shape, 64).reshape(-1, shape.action_dim))
    policy = Policy(mllm, _make_head(setting, mllm).eval(), _view(setting, layer), stats, None)
    seen, rows = _observation(setting, 0), []
    prompt = policy.view.prompt(seen.images, seen.instruction)
    prepared = [
        1000
        * timed(
            lambda: collate(mllm, [encode_prompt(mllm, prompt.question, prompt.images)]), device
        )
        for _ in range(9)
    ]
    tokens = len(encode_prompt(mllm, prompt.question, prompt.images).input_ids)
    eager = policy.act(seen, ("a", 0))
    for compiled in (False, True) if setting.compile else (False,):
        begin(device)
        if compiled:
            policy.compile()
        off = float(np.abs(policy.act(seen, ("a", 0)) - eager).max())
        calls = [
            1000 * timed(lambda: policy.act(seen, ("a", 0)), device)
            for _ in range(WARM + 4 * setting.steps)
        ]
        note = f"{tokens} tokens; of it text and pixels, on the CPU: {statistics.median(prepared):.1f} ms"
        note += f"; actions differ from the eager ones by {off:.1g} at most" if compiled else ""
        what = f"{name}, {'compiled' if compiled else 'eager'}"
        rows.append(Row("act", what, "ms", calls[WARM:], peak_of(device), note))
    return rows


def attempt(part: str, what: str, setting: Setting, run: Callable[[], list[Row]]) -> Iterator[Row]:
    """The rows of `run`; where it runs out of memory, a row that says so."""
    begin(setting.device)
    failed = False
    try:
        yield from run()
    except torch.OutOfMemoryError:
        failed = True
    # Behind the handler, whose traceback holds what was allocated.
    if failed:
        yield Row(part, what, "", [], peak_of(setting.device), "out of memory")
    begin(setting.device)


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sft": sft_part,
    "rollout": rollout_part,
    "head": head_part,
    "act": act_part,
}
