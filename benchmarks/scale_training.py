"""The trainings that `scale.py` measures, each through the product's own code: SFT, and GRPO's rollout and updates."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scale_measure import NEVER, Row, Setting, attempt, fits, peak_of, wait
from scale_model import (
    Shape,
    action_tokenizer,
    build,
    conversations,
    patches_of,
    picture,
    rl_prompts,
    training_pass,
    work_of,
)
from transformers import TrainerCallback
from transformers.utils import is_liger_kernel_available

from roboalign.align import sft
from roboalign.align.dataset import Conversations
from roboalign.align.grpo import train as grpo
from roboalign.align.trained import freeze_vision
from roboalign.mllm.encode import IGNORED, encode_conversation
from roboalign.mllm.load import Mllm


class Ticks(TrainerCallback):
    """The time at the end of each update, and what the trainer had counted by then."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.at = trainer, [(time.perf_counter(), dict(trainer.counters))]

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        wait(self.trainer.args.device)
        self.at.append((time.perf_counter(), dict(self.trainer.counters)))


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
    shape, updates = setting.shape, setting.warm + setting.steps
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
    encoded = [Conversations(mllm, data)[index] for index in order[setting.warm * shape.batch :]]
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
    pairs = list(zip(ticks.at[setting.warm :], ticks.at[setting.warm + 1 :]))
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
