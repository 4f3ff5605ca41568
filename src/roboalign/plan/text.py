"""Format what `roboalign plan` prints."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from roboalign.plan.arithmetic import Gpu, Memory
from roboalign.plan.costs import plan_costs
from roboalign.plan.model import Assumptions, Model, image_pixels
from roboalign.plan.stage_cost import StageCost
from roboalign.run.recipe import Recipe

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_PARTS = {
    "optimizer": "AdamW",
    "casts": "bf16 copies",
    "gathered": "gathered weights",
    "reference": "frozen model",
    "tables": "tables with trained rows",
    "cache": "rollout cache",
    "sampler": "policy gathered to sample",
    "whole": "whole model at the start",
    "server": "vLLM while it samples",
    "asleep": "vLLM asleep",
}
MOST_GPUS = 1024  # largest number of GPUs over which sharding is tried


@dataclass(frozen=True)
class Fix:
    """What makes a stage run: changes in words, and the memory of a GPU under them; None if nothing
    is enough."""

    changes: tuple[str, ...] = ()
    memory: Memory | None = None


def find_fix(stage: StageCost, usable: float, count: int) -> Fix:
    """Find the fewest changes under which the stage fits into `usable` bytes and its batch divides
    over its GPUs.

    Tried in order: the recipe as it is, checkpointing, a micro-batch of 1, and these sharded over
    the `count` available GPUs; the same with a smaller setting (`StageCost.smaller`); more GPUs.
    """
    here, more = _shares(stage, count)
    for shares in (here, more):
        smaller, change = stage, ""
        while True:
            for share in shares:
                for micro, checkpointing in _ways(smaller):
                    memory = smaller.memory(checkpointing, micro, share)
                    if memory.total <= usable:
                        changes = _changes(smaller, micro, checkpointing, share, count)
                        return Fix((*([change] if change else []), *changes), memory)
            if smaller.smaller is None:
                break
            change, smaller = smaller.smaller
    return Fix((_last_resort(stage),))


def _ways(stage: StageCost) -> Iterator[tuple[int, bool]]:
    """Yield micro-batch and checkpointing: the recipe's first, then settings that take less
    memory."""
    micros = sorted({_divided(stage)[1], 1}, reverse=True)
    for micro in micros:
        yield micro, stage.checkpointing
        if stage.checkpointing_key and not stage.checkpointing:
            yield micro, True


def _divided(stage: StageCost) -> tuple[int, int]:
    """Return the smallest batch, starting from the recipe's, that divides over the GPUs, and the
    largest micro-batch up to the recipe's that does.

    If parts need not be equal, the batch only needs one sample per GPU.
    """
    if not stage.micro_key:
        return max(stage.batch, stage.gpus), stage.micro
    batch = math.ceil(stage.batch / stage.gpus) * stage.gpus
    each = batch // stage.gpus
    return batch, next(micro for micro in range(min(stage.micro, each), 0, -1) if each % micro == 0)


def _shares(stage: StageCost, count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of GPUs to shard over: of those available (1: no sharding), and of
    more."""
    if not stage.checkpointing_key or stage.whole:
        return [1], []
    return sorted({1, count}), [2**i for i in range(1, MOST_GPUS.bit_length()) if 2**i > count]


def _changes(
    stage: StageCost, micro: int, checkpointing: bool, share: int, count: int
) -> Iterator[str]:
    batch = _divided(stage)[0]
    if not stage.micro_key and micro != stage.micro:
        batch = micro * stage.gpus
    if batch != stage.batch:
        yield f"--set {stage.batch_key}={batch - stage.replayed}"
    if checkpointing != stage.checkpointing:
        yield f"--set {stage.checkpointing_key}=true"
    if stage.micro_key and micro != stage.micro:
        yield f"--set {stage.micro_key}={micro}"
    if share > 1:
        more = f", {share - count} more than there are" if share > count else ""
        yield f"shard weights, gradients and optimizer over {share} GPUs (FSDP){more}"


def _last_resort(stage: StageCost) -> str:
    if stage.names == ("head",):
        return "no setting is enough: use a smaller `head` or backbone, or larger GPUs"
    if stage.whole:
        return "LoRA is not sharded: use hardware.dtype: bfloat16, larger GPUs, a smaller backbone, or shorter samples"
    return f"no sharding over up to {MOST_GPUS} is enough: use larger GPUs, a smaller backbone, or shorter samples"


def describe_plan(
    recipe: Recipe, gpu: Gpu, count: int, assumed: Assumptions, price: float | None
) -> str:
    """Return the whole plan as text. `price` is for one GPU for an hour, in any currency; None
    leaves money out."""
    model, stages = plan_costs(recipe, gpu, count, assumed)
    usable = gpu.memory * assumed.usable
    pixels = image_pixels(recipe, assumed)
    lines = [_title(recipe, model, gpu, count, usable, pixels)]
    for stage in stages:
        lines += ["", *_stage(stage, usable, count, price)]
    lines += ["", _sum(stages, price), "", *_notes(recipe, gpu, assumed)]
    return "\n".join(lines)


def _title(
    recipe: Recipe, model: Model, gpu: Gpu, count: int, usable: float, pixels: tuple[int, int]
) -> str:
    b, (height, width) = model.numbers, pixels
    image = f"an image of {width} x {height} pixels is {model.image_tokens} tokens"
    return (
        f"{recipe.name} on {count} x {gpu.name} ({size(gpu.memory)} each, {size(usable)} of it usable)\n"
        f"Backbone {model.name}, action tokens included: {quantity(b.parameters)} parameters, {quantity(b.vision)} of "
        f"them vision; the head reads layer {recipe.backbone.layer} of {b.layers}; {image}"
    )


def _stage(stage: StageCost, usable: float, count: int, price: float | None) -> list[str]:
    memory = stage.memory(stage.checkpointing, stage.micro, 1)
    hours = stage.seconds * stage.gpus / 3600
    money = f" for {hours * price:,.2f}" if price is not None else ""
    each = "each " if stage.runs > 1 else ""
    lines = [
        f"{', '.join(stage.names)} ({'once' if stage.runs == 1 else f'{stage.runs} runs'}): {each}{stage.work}",
        f"  {quantity(stage.tokens)} tokens, {quantity(stage.flops)}FLOP; {each}about {duration(stage.seconds)} on "
        f"{stage.gpus} GPU{'s' * (stage.gpus > 1)}, {hours:.3g} GPU hours{money}",
        f"  memory {size(memory.total)} a GPU: {_parts(memory)}",
    ]
    if stage.checkpointing_key:
        other = stage.memory(not stage.checkpointing, stage.micro, 1)
        how = "without" if stage.checkpointing else "with"
        lines.append(
            f"  {how} gradient checkpointing {size(other.total)}: activations {size(other.activations)}"
        )
    faults = []
    if stage.batch % (stage.micro * stage.gpus) if stage.micro_key else stage.batch < stage.gpus:
        faults.append(f"{_batch(stage)} DOES NOT DIVIDE over {stage.gpus} GPUs x {stage.micro}")
    if memory.total > usable:
        faults.append(f"DOES NOT FIT into {size(usable)}")
    if faults:
        fix = find_fix(stage, usable, count)
        lines += [f"  {'; '.join(faults)}", f"  Fix: {'; '.join(fix.changes)}"]
        if fix.memory:
            lines.append(f"  then {size(fix.memory.total)} a GPU: {_parts(fix.memory)}")
    else:
        lines.append(f"  fits into {size(usable)}")
    return [
        *lines,
        "  disk: " + ", ".join(f"{name} {size(amount)}" for name, amount in stage.disk.items()),
    ]


def _batch(stage: StageCost) -> str:
    replayed = f" + {stage.replayed} replayed" if stage.replayed else ""
    return f"{stage.batch_key} {stage.batch - stage.replayed}{replayed}"


def _parts(memory: Memory) -> str:
    parts = {field.name: getattr(memory, field.name) for field in fields(memory)}
    return ", ".join(
        f"{_PARTS.get(name, name)} {size(amount)}" for name, amount in parts.items() if amount
    )


def _sum(stages: list[StageCost], price: float | None) -> str:
    hours = sum(stage.runs * stage.seconds * stage.gpus for stage in stages) / 3600
    kept = sum(
        stage.runs
        * sum(amount for name, amount in stage.disk.items() if not name.startswith("checkpoint"))
        for stage in stages
    )
    peak = max(
        sum(amount for name, amount in stage.disk.items() if name.startswith("checkpoint"))
        for stage in stages
    )
    money = f", {hours * price:,.2f} at {price:g} an hour" if price is not None else ""
    return (
        f"All runs: {hours:.3g} GPU hours{money}; disk {size(kept)} in the end, and up to {size(peak)} of "
        "checkpoints while a stage runs"
    )


def _notes(recipe: Recipe, gpu: Gpu, assumed: Assumptions) -> list[str]:
    values = ", ".join(f"{name} {value:g}" for name, value in assumed.model_dump().items())
    return [
        f"Assumed (--assume NAME=VALUE changes it): {values}",
        f"Peaks of {gpu.name}, from its data sheet: {quantity(gpu.bfloat16)}FLOP/s in bfloat16, {quantity(gpu.float32)}"
        f"FLOP/s in float32, {quantity(gpu.bandwidth)}B/s of memory.",
        "Not counted: collection, the mixture, `distill`, the pretraining of `backbone.source: train`, "
        "`backbone.connector`, token metrics, rollouts in the simulator, the exchange between GPUs.",
        "No number above has been compared with a GPU yet. Memory is what tensors hold; time is an order of magnitude.",
        "The launcher shards, not the recipe: see docs/how-to/scale-out.md.",
        "How to read this plan: docs/how-to/forecast-cost.md.",
    ]


def size(amount: float) -> str:
    """Format 1.5e9 as `1.5 GB`: powers of ten, as GPUs are sold."""
    return f"{quantity(amount)}B"


def quantity(amount: float) -> str:
    """Format 8.29e9 as `8.29 G`."""
    factor, unit = next(((factor, unit) for factor, unit in UNITS if amount >= factor), (1, ""))
    return f"{amount / factor:.3g} {unit}"


def duration(seconds: float) -> str:
    """Format 5400 as `1.5 h`."""
    for limit, length, name in ((86400 * 2, 86400, "days"), (3600, 3600, "h"), (60, 60, "min")):
        if seconds >= limit:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.2g} s"
