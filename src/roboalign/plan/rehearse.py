"""`roboalign plan --rehearse`: one update of each training at its full size, on fake tensors.

The trainers' own code runs, with a model that has the recipe's shapes and no weights behind them.
Mismatches show before a GPU is rented, as does the memory it would need, to compare with the plan.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from roboalign.actions.fast import FastTokenizer
from roboalign.align import sft
from roboalign.align.grpo import train as grpo
from roboalign.align.schedule import accumulation_of, micro_batch_of
from roboalign.align.trainer import AlignTrainer
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.core.distributed import world_size
from roboalign.mllm.fake import Meter, fake_weights, fixed_in_place
from roboalign.mllm.load import Mllm
from roboalign.plan.arithmetic import Gpu
from roboalign.plan.costs import plan_costs
from roboalign.plan.model import Assumptions, image_pixels, mean_turns
from roboalign.plan.rehearse_model import (
    Lengths,
    conversation_lengths,
    fake_backbone,
    image_tokens_of,
    talks,
    tokens_of,
    word_token,
)
from roboalign.plan.rehearse_split import split_over
from roboalign.plan.rl_cost import GENERATED_ROWS
from roboalign.plan.text import size
from roboalign.run.benchmark import head_view
from roboalign.run.recipe import Recipe
from roboalign.vla.frames import Frames
from roboalign.vla.head import FlowMatchingHead, HeadShape
from roboalign.vla.train import Trained, average_of, loss_module, make_optimizer, train_step

NEVER = 10**9
PASSES = 2  # maximum micro-batches of the rehearsed update: gradients exist when the second begins
_WEIGHTS, OPTIMIZER, FROZEN = "weights", "AdamW", "frozen model"


@dataclass(frozen=True)
class Rehearsed:
    """The peak memory of a part of a training on one GPU."""

    stage: str
    part: str
    """`start`: until the first update begins; `rollout`; `update`; for the head `hidden states` and
    `step`."""
    peak: Counter[str]
    """Bytes by what held them; `""` is everything temporary: gradients, copies, activations, a
    cache."""
    planned: float
    """Bytes that `roboalign plan` gives for the same part and lengths; 0 if it gives none."""

    @property
    def total(self) -> int:
        return sum(self.peak.values())

    def line(self) -> str:
        """Return the line that is printed."""
        names = {name: name or "what comes and goes" for name in self.peak}
        held = ", ".join(
            f"{names[name]} {size(amount)}" for name, amount in self.peak.items() if amount
        )
        planned = (
            f"; the plan says {size(self.planned)}, {self.planned / self.total - 1:+.1%}"
            if self.planned
            else ""
        )
        return f"  {self.stage}, {self.part}: {size(self.total)} ({held}){planned}"


@dataclass(frozen=True)
class Rehearsal:
    """What a training is rehearsed with."""

    recipe: Recipe
    assumed: Assumptions
    count: int
    """GPUs."""
    mllm: Mllm

    @property
    def side(self) -> int:
        # A square image of as many pixels as one of the alignment.
        return round(float(np.prod(image_pixels(self.recipe, self.assumed)) ** 0.5))

    @property
    def turns(self) -> int:
        return round(mean_turns(self.recipe))

    def passes(
        self, batch: int, micro: int, unit: Literal["conversations", "prompts"] = "conversations"
    ) -> int:
        """Return the micro-batches of the rehearsed update. Raises RoboAlignError if the recipe's
        do not divide."""
        return min(PASSES, accumulation_of(batch, micro, self.count, unit))

    def talks(self, turns: int, count: int) -> list[Conversation]:
        return talks(self.mllm, self.assumed, self.side, turns, count)


Peaks = dict[str, Counter[str]]


def describe_rehearsal(recipe: Recipe, gpu: Gpu, count: int, assumed: Assumptions) -> Iterator[str]:
    """Yield the text of a rehearsal, line by line as it runs. The model is split if it does not fit
    whole."""
    _, stages = plan_costs(recipe, gpu, count, assumed)
    usable = gpu.memory * assumed.usable
    split = count > 1 and any(
        stage.checkpointing_key
        and not stage.whole
        and stage.memory(stage.checkpointing, stage.micro, 1).total > usable
        for stage in stages
    )
    how = f"split over {count} GPUs by FSDP2" if split else "whole on each GPU"
    yield f"Rehearsal on tensors without numbers, the model {how} (the head's whole). The most that tensors hold there:"
    for one in rehearse(recipe, gpu, count, assumed, split=split):
        yield one.line()


def rehearse(
    recipe: Recipe, gpu: Gpu, count: int, assumed: Assumptions, *, split: bool
) -> Iterator[Rehearsed]:
    """Rehearse each kind of training of the recipe, as one of `count` GPUs runs it; `split`: FSDP2
    shards the model over them.

    The head is always trained on a whole model. Raises RoboAlignError as the trainings do, and if a
    batch does not divide over the GPUs or the backbone's processor is not known.
    """
    recipe = recipe.model_copy(
        update={"rl": recipe.rl.model_copy(update={"vllm": None})}
    )  # there is no server
    model, stages = plan_costs(recipe, gpu, count, assumed)
    parts: dict[str, Callable[[Rehearsal], tuple[Peaks, Lengths]]] = {
        "sft": _sft,
        "rl": _rl,
        "head": _head,
    }
    for name in (name for name in parts if any(name in stage.names for stage in stages)):
        share = count if split and name != "head" else 1
        with (
            split_over(share) if share > 1 else nullcontext(),
            fixed_in_place(),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            made = Rehearsal(recipe, assumed, count, fake_backbone(recipe, model.rows))
            peaks, lengths = parts[name](made)
        _, again = plan_costs(recipe, gpu, count, assumed.model_copy(update=lengths.assumed()))
        stage = next(one for one in again if name in one.names)
        memory = stage.memory(stage.checkpointing, stage.micro, share)
        planned = {
            "start": memory.start,
            "rollout": memory.rollout,
            "update": memory.update,
            "step": memory.update,
        }
        for part, peak in peaks.items():
            yield Rehearsed(name, part, peak, planned.get(part, 0.0))


def _sft(made: Rehearsal) -> tuple[Peaks, Lengths]:
    config = made.recipe.sft
    micro = config.micro_batch_size
    if config.tokens_per_micro_batch:
        length = tokens_of(made.mllm, made.talks(made.turns, 1)[0])
        fitting = max(1, config.tokens_per_micro_batch // length)
        micro = micro_batch_of(config.batch_size, fitting, made.count)
    batch = made.passes(config.batch_size, micro) * micro * world_size()
    config = config.model_copy(
        update={
            "micro_batch_size": micro,
            "tokens_per_micro_batch": None,
            "batch_size": batch,
            "max_steps": 1,
            "workers": 0,
            "compile": False,
            "liger": False,
            "save_every": NEVER,
        }
    )
    data = made.talks(made.turns, batch)
    with fake_weights():  # adapters are new weights
        lora = config.choose_trained(made.mllm)
    meter, order = Meter(word_token(made.mllm)), list(range(batch))
    with _folder() as folder:
        trainer = sft.build_sft_trainer(
            made.mllm, data, config, folder, order, 1, "sft", lora, digest=_no_numbers
        )
        return _run(trainer, meter), conversation_lengths(made.mllm, data[0])


def _rl(made: Rehearsal) -> tuple[Peaks, Lengths]:
    """Rehearse RL with one batch of sampled answers: a longer rollout samples batches one after the
    other."""
    config, mllm = made.recipe.rl, made.mllm
    own = (
        made.passes(config.prompts_per_update, config.micro_batch_size, "prompts")
        * config.micro_batch_size
    )
    sampled = min(
        -(-config.prompts_per_rollout // made.count), max(1, GENERATED_ROWS // config.samples)
    )
    updates = -(-sampled // own)
    update = own * world_size()
    config = config.model_copy(
        update={
            "prompts_per_update": update,
            "prompts_per_rollout": updates * update,
            "updates": updates,
            "replay_batch": -(-config.replay_batch * update // config.prompts_per_update),
            "save_every": NEVER,
        }
    )
    data, fast = _prompts(made, updates * update)
    replay = made.talks(made.turns, config.replay_batch) if config.replay_weight else []
    with fake_weights():
        lora = config.choose_trained(mllm)
    meter, order = Meter(word_token(mllm)), list(range(len(data)))
    with _folder() as folder:
        trainer = grpo.build_grpo_trainer(
            mllm,
            fast,
            data,
            replay,
            config,
            folder,
            order,
            updates,
            "rl",
            lora,
            digest=_no_numbers,
        )
        trainer.gather = list  # the other processes do not exist
        trainer.require_the_samplers_policy = _not_compared  # type: ignore[method-assign]
        if trainer.reference is not None:
            meter.label(FROZEN, trainer.reference.parameters())
        return _run(trainer, meter), conversation_lengths(mllm, made.talks(1, 1)[0])


def _prompts(made: Rehearsal, count: int) -> tuple[list[Conversation], FastTokenizer]:
    """Return action questions with a target, and the tokenizer that reads it."""
    assert made.mllm.vocabulary is not None
    chunks = np.random.default_rng(0).uniform(
        -1, 1, (64, made.recipe.tokenizer.horizon, made.assumed.action_dim)
    )
    fast = FastTokenizer.fit(chunks, scale=10, vocab_size=len(made.mllm.vocabulary.fast_ids))
    target, single = tuple(fast.encode(chunks[:1])[0]), made.talks(1, 1)[0]
    asked = Turn("action", "action", "think", single.turns[0].question, "", "")
    return [
        Conversation(f"rl-{i}", "episode", i, "task", single.images, (asked,), target=target)
        for i in range(count)
    ], fast


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _not_compared(logp: torch.Tensor, batch: Any) -> None:
    """Skip the comparison with the sampler: fake numbers cannot be compared."""


def _no_numbers(model: nn.Module) -> str:
    """Return no digest: fake weights have none."""
    return ""


def _run(trainer: AlignTrainer, meter: Meter) -> Peaks:
    """Run the first update of a training; return the peaks until it begins, in a rollout, and after
    that."""
    trainer.args.save_strategy = "no"  # type: ignore[assignment]
    watch = _OneUpdate(trainer, meter)
    trainer.add_callback(watch)
    meter.label(_WEIGHTS, trainer.model.parameters())
    meter.reset()
    with meter:
        trainer.run()
    return {**watch.peaks, "update": meter.peak}


class _OneUpdate(TrainerCallback):
    """End a training after its first update, which finds AdamW's moments as every later one
    does."""

    def __init__(self, trainer: AlignTrainer, meter: Meter) -> None:
        self.meter = meter
        self.peaks: Peaks = {}
        if isinstance(trainer, grpo.GrpoTrainer):
            self.begin, trainer.begin_rollout = trainer.begin_rollout, self.begin_rollout  # type: ignore[method-assign]

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self.peaks["start"] = self.meter.peak
        optimizer = named["optimizer"]
        state = getattr(optimizer, "optimizer", optimizer).state
        self.meter.label(_WEIGHTS, named["model"].parameters())
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.meter.label(OPTIMIZER, moments.values())
            state[parameter] = {"step": torch.zeros(()), **moments}
        self.meter.reset()

    def begin_rollout(self) -> None:
        self.begin()
        self.peaks["rollout"] = self.meter.peak
        self.meter.reset()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_training_stop = True
        return control


class _Stored:
    """Hidden states in memory instead of in files."""

    def __init__(self, states: torch.Tensor, mask: torch.Tensor) -> None:
        self.states, self.mask = states, mask

    def __len__(self) -> int:
        return len(self.states)

    def gather(self, frames: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self.states[: len(frames)].clone(), self.mask[: len(frames)]


def _head(made: Rehearsal) -> tuple[Peaks, Lengths]:
    """Rehearse a batch of hidden states and two steps of the head on them; the frozen model stays
    in memory."""
    recipe, mllm, assumed, config = made.recipe, made.mllm, made.assumed, made.recipe.head_training
    view = head_view(recipe)
    black = np.zeros((made.side, made.side, 3), np.uint8)
    prompt = view.prompt(dict.fromkeys(view.cameras, black), "open the drawer")
    ids = view.longest(mllm, prompt).input_ids
    image = image_tokens_of(mllm, ids)
    meter, micro = Meter(word_token(mllm)), -(-config.batch_size // made.count)
    meter.label(FROZEN, mllm.model.parameters())
    meter.reset()
    with meter:
        states, mask = view.encode(mllm, [view.longest(mllm, prompt)] * config.features.batch_size)
    peaks = {"hidden states": meter.peak}
    shape = HeadShape(
        vlm_width=states.shape[2],
        action_dim=assumed.action_dim,
        state_dim=assumed.state_dim,
        horizon=recipe.tokenizer.horizon,
    )
    with fake_weights():
        head = FlowMatchingHead(recipe.head, shape)
        kept = torch.empty(micro, *states.shape[1:], dtype=states.dtype)
        actions, state = (
            torch.empty(micro, shape.horizon, shape.action_dim),
            torch.empty(micro, shape.state_dim),
        )
    del states
    store: Any = _Stored(kept, mask[:1].expand(micro, -1))
    frames = Frames(store, actions, state if recipe.head.proprioception else None)
    config = config.model_copy(update={"batch_size": micro, "compile": False})
    trained = Trained(head, make_optimizer(head, config), average_of(head, config))
    meter.label(_WEIGHTS, head.parameters())
    with meter:
        for step in range(PASSES):
            meter.reset()
            train_step(loss_module(head, compiled=False), trained, frames, config, step, 0)
            meter.label(
                OPTIMIZER,
                [value for one in trained.optimizer.state.values() for value in one.values()],
            )
    return {**peaks, "step": meter.peak}, Lengths(image, len(ids) - image, assumed.answer_tokens)
