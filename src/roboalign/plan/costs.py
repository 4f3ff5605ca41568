"""`roboalign plan`: memory, disk, time and money of a recipe's trainings on given GPUs, before anything starts.

What is known is computed: shapes from the model's configuration, without its weights. What is not (how long questions
and answers are, how well a GPU is used) is assumed, printed with the result, and can be given with --assume.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from roboalign.align.schedule import micro_batch_of
from roboalign.align.trained import TuneConfig
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.rounding import token_bytes
from roboalign.plan import arithmetic as costs
from roboalign.plan.arithmetic import BFLOAT16, FLOAT32, Gpu, Memory
from roboalign.plan.model import Assumptions, Model, model_of
from roboalign.run.arms import backbones
from roboalign.run.recipe import Recipe
from roboalign.vla.head import FlowMatchingHead, HeadShape

GENERATED_ROWS = 256  # answers that `mllm.generate` samples at a time
STEP = 0.1  # by which `rl.vllm.memory` is tried smaller
SHORTEST = 128  # tokens of an answer below which no plan advises to cut it: it must hold a reasoning and an action


def _no_memory(checkpointing: bool, micro: int, share: int) -> Memory:
    return Memory()


@dataclass(frozen=True)
class StageCost:
    """What one run of a stage takes."""

    names: tuple[str, ...]
    """The stages of this kind: they cost the same."""
    runs: int
    """How often the recipe runs one of them."""
    gpus: int
    """GPUs that one run uses."""
    disk: dict[str, float]
    """Bytes; `checkpoint...` are gone when the stage has ended."""
    checkpointing: bool
    """Gradient checkpointing, as the recipe says."""
    checkpointing_key: str
    """The recipe's setting of it; "" where there is none."""
    micro: int
    """Micro-batch on a GPU, as the recipe says."""
    micro_key: str
    """"" where a GPU takes its part of the batch at once; the parts need not be equal."""
    batch: int
    """What an update takes, over all GPUs."""
    batch_key: str
    beside: int = 0
    """What of `batch` is not counted by its key."""
    whole: bool = False
    """A launch that splits the model over GPUs is refused."""
    work: str = ""
    """In words."""
    tokens: float = 0
    flops: float = 0
    seconds: float = 0
    memory: Callable[[bool, int, int], Memory] = _no_memory
    """Of one GPU under (checkpointing, micro-batch, GPUs over which weights, gradients and optimizer are sharded)."""
    smaller: "tuple[str, StageCost] | None" = None
    """A change of the recipe that takes less memory, and the stage under it."""


def plan_costs(
    recipe: Recipe, gpu: Gpu, count: int, assumed: Assumptions
) -> tuple[Model, list[StageCost]]:
    """The recipe's backbone and what each kind of training costs, in the order in which they run.

    Raises RoboAlignError as model_of does.
    """
    model = model_of(recipe, assumed)
    trained: dict[str, list[str]] = {"sft": [], "imitation": [], "rl": []}
    for backbone in backbones(recipe.arms):
        if backbone.like:
            trained[backbone.like].append(backbone.stage)
    whole, again, rl = trained.values()
    asked = (recipe, model, gpu, count, assumed)
    stages = []
    if whole:
        stages.append(_sft(*asked, whole))
    if again:
        stages.append(_imitation(*asked, again))
    if rl:
        stages.append(_rl(*asked, rl))
    return model, [*stages, _head(*asked)]


def _turns(recipe: Recipe) -> float:
    return (recipe.mix.min_turns + recipe.mix.max_turns) / 2


def _rl_rollouts(recipe: Recipe) -> int:
    config, mix = recipe.rl, recipe.mix
    if config.updates:
        return config.updates // config.updates_per_rollout
    prompts = min(mix.rl_share * _turns(recipe), mix.action_share) * mix.conversations
    return math.ceil(max(1, int(prompts)) * config.epochs / config.prompts_per_rollout)


def _number(recipe: Recipe) -> int:
    """Bytes of a weight that is not trained."""
    return BFLOAT16 if recipe.hardware.dtype == "bfloat16" else FLOAT32


def _adapters(model: Model, config: TuneConfig) -> int:
    """What LoRA trains; 0 without it."""
    return costs.lora_parameters(model.numbers, config.lora.rank, model.rows) if config.lora else 0


def _rank(config: TuneConfig) -> int:
    return config.lora.rank if config.lora else 0


def _vision_passes(config: TuneConfig) -> int:
    return 1 if config.freeze_vision or config.lora else 3


def _state(
    recipe: Recipe,
    model: Model,
    config: TuneConfig,
    share: int,
    *,
    checkpointing: bool,
    passes: int = 1,
) -> Memory:
    """Weights, gradients and optimizer of a training of the MLLM; `passes` as in costs.lora_state."""
    b = model.numbers
    if config.lora:
        return costs.lora_state(
            b,
            _adapters(model, config),
            number=_number(recipe),
            bf16=config.bf16,
            checkpointing=checkpointing,
            passes=passes,
        )
    trainable = b.parameters - (b.vision if config.freeze_vision else 0)
    cast = b.multiplied + (0 if config.freeze_vision else b.vision)
    return costs.training_state(
        b.parameters, trainable, cast=cast if config.bf16 else 0, unit=b.unit, share=share
    )


def _disk(recipe: Recipe, model: Model, config: TuneConfig) -> dict[str, float]:
    b = model.numbers
    if config.lora:
        trained = _adapters(model, config)
        return {
            "checkpoints": costs.checkpoint_bytes(trained, trained),
            "model": _number(recipe) * b.parameters,
        }
    trainable = b.parameters - (b.vision if config.freeze_vision else 0)
    return {
        "checkpoints": costs.checkpoint_bytes(b.parameters, trainable),
        "model": FLOAT32 * b.parameters,
    }


def _peak(gpu: Gpu, bf16: bool) -> float:
    return gpu.bfloat16 if bf16 else gpu.float32


def _sft(
    recipe: Recipe, model: Model, gpu: Gpu, count: int, a: Assumptions, names: list[str]
) -> StageCost:
    config = recipe.sft
    samples = (
        config.max_steps * config.batch_size
        if config.max_steps
        else recipe.mix.conversations * config.epochs
    )
    return _fine_tuning(
        recipe,
        model,
        gpu,
        count,
        a,
        config,
        (samples, _turns(recipe)),
        StageCost(
            names=tuple(names),
            runs=len(names) * len(recipe.seeds),
            gpus=count,
            disk=_disk(recipe, model, config),
            checkpointing=config.gradient_checkpointing,
            checkpointing_key="sft.gradient_checkpointing",
            micro=config.micro_batch_size,
            micro_key="sft.micro_batch_size",
            batch=config.batch_size,
            batch_key="sft.batch_size",
            whole=bool(config.lora),
        ),
    )


def _imitation(
    recipe: Recipe, model: Model, gpu: Gpu, count: int, a: Assumptions, names: list[str]
) -> StageCost:
    """SFT on what RL is asked, split as `stages.align.imitate` does it."""
    config, replayed = recipe.rl, recipe.rl.replay_batch if recipe.rl.replay_weight else 0
    batch = config.prompts_per_update + replayed
    samples = _rl_rollouts(recipe) * config.updates_per_rollout * batch
    return _fine_tuning(
        recipe,
        model,
        gpu,
        count,
        a,
        config,
        (samples, 1),
        StageCost(
            names=tuple(names),
            runs=len(names) * len(recipe.seeds),
            gpus=count,
            disk=_disk(recipe, model, config),
            checkpointing=config.gradient_checkpointing,
            checkpointing_key="rl.gradient_checkpointing",
            micro=micro_batch_of(
                math.ceil(batch / count) * count, recipe.sft.micro_batch_size, count
            ),
            micro_key="sft.micro_batch_size",
            batch=batch,
            batch_key="rl.prompts_per_update",
            beside=replayed,
            whole=bool(config.lora),
        ),
    )


def _fine_tuning(
    recipe: Recipe,
    model: Model,
    gpu: Gpu,
    count: int,
    a: Assumptions,
    config: TuneConfig,
    conversations: tuple[float, float],
    stage: StageCost,
) -> StageCost:
    """`stage` with the cost of SFT on `conversations`: how many, and how many turns each has."""
    b, (samples, turns) = model.numbers, conversations
    length = model.image_tokens + turns * (a.question_tokens + a.answer_tokens)
    tokens, answers = samples * length, samples * turns * a.answer_tokens
    flops = costs.training_flops(
        b,
        tokens,
        length,
        answers,
        checkpointing=config.gradient_checkpointing,
        adapters=_adapters(model, config),
    )
    flops += costs.vision_flops(b, samples * model.patches) * _vision_passes(config)

    def memory(checkpointing: bool, micro: int, share: int) -> Memory:
        held = costs.activation_bytes(
            b, micro * length, bf16=config.bf16, checkpointing=checkpointing, rank=_rank(config)
        )
        asked = costs.logit_bytes(b, micro * turns * a.answer_tokens, bf16=config.bf16)
        state = _state(recipe, model, config, share, checkpointing=checkpointing)
        return replace(state, activations=held, logits=asked)

    return replace(
        stage,
        work=f"{samples:,.0f} conversations of {length:,.0f} tokens",
        tokens=tokens,
        flops=flops,
        memory=memory,
        seconds=costs.compute_seconds(flops, _peak(gpu, config.bf16), a.utilisation, count),
    )


@dataclass(frozen=True)
class _Answers:
    """The sizes of a rollout of GRPO, lengths in tokens."""

    prompt: float
    reply: float
    longest: int
    rows: int
    """Answers that a GPU samples at a time."""
    batches: int
    """How often it does so, over all rollouts."""
    asked: int
    """Prompts over all rollouts."""


def _answers(recipe: Recipe, model: Model, count: int, a: Assumptions) -> _Answers:
    config, rollouts = recipe.rl, _rl_rollouts(recipe)
    own = math.ceil(config.prompts_per_rollout / count)  # of one GPU
    at_once = min(own, max(1, GENERATED_ROWS // config.samples))
    return _Answers(
        prompt=model.image_tokens + a.question_tokens,
        reply=min(a.reply_tokens, config.max_new_tokens),
        longest=config.max_new_tokens,
        rows=at_once * config.samples,
        batches=rollouts * math.ceil(own / at_once),
        asked=rollouts * config.prompts_per_rollout,
    )


@dataclass(frozen=True)
class _Server:
    """The vLLM server of `rl.vllm.serve` on each GPU: bytes, and the seconds that it decodes."""

    share: float = 0
    asleep: float = 0
    seconds: float = 0
    work: str = ""
    smaller: float = 0
    """A smaller `rl.vllm.memory` that holds its weights and the cache of one group of answers; 0: there is none."""


def _server(
    recipe: Recipe, model: Model, gpu: Gpu, count: int, a: Assumptions, sizes: _Answers
) -> _Server:
    """Raises RoboAlignError where its share of the GPU does not hold its weights."""
    config, vllm, b = recipe.rl, recipe.rl.vllm, model.numbers
    if vllm is None:
        return _Server()
    if not vllm.serve:
        return _Server(work=", sampled by a server whose GPUs are not counted")
    told = any(option.endswith("float32") for option in vllm.options)
    number = FLOAT32 if told else BFLOAT16  # of float32 vLLM makes bfloat16, unless it is told
    share, weights = vllm.memory * gpu.memory, number * b.parameters
    if share <= weights:
        raise RoboAlignError(
            f"{vllm.memory:g} of {gpu.name} is {share / 1e9:.3g} GB, and the server's weights are "
            f"{weights / 1e9:.3g} GB",
            where="rl.vllm.memory",
            fix=f"give it more than {weights / gpu.memory:.2g}, or take larger GPUs",
        )
    own = math.ceil(config.prompts_per_rollout / count)
    rows = min(own, vllm.concurrency) * config.samples
    steps = max(
        sizes.longest, own * config.samples * sizes.reply / rows
    )  # where one answer ends, the next begins
    read = number * b.multiplied + costs.cache_bytes(b, rows, sizes.prompt + sizes.reply, number)
    group = costs.cache_bytes(b, config.samples, sizes.prompt + sizes.longest, number)
    less = round(vllm.memory - STEP, 2)
    return _Server(
        share=share,
        asleep=min(a.asleep, share) if vllm.sleep else share,
        seconds=costs.decode_seconds(_rl_rollouts(recipe) * steps, read, gpu, a.bandwidth),
        work=f", sampled by vLLM on the same GPUs ({weights / 1e9:.3g} GB of weights)",
        smaller=less if less * gpu.memory > weights + group else 0,
    )


def _rl(
    recipe: Recipe, model: Model, gpu: Gpu, count: int, a: Assumptions, names: list[str]
) -> StageCost:
    config, b, sizes = recipe.rl, model.numbers, _answers(recipe, model, count, a)
    update, sampled = _rl_flops(recipe, model, a, sizes)
    server = _server(recipe, model, gpu, count, a, sizes)
    # Weights and the reference are as they are loaded, in float32 unless they are frozen beside adapters. Under bf16
    # the rollout multiplies with the copies that autocast makes once of what is trained.
    loaded = _number(recipe) if config.lora else FLOAT32
    multiplied = BFLOAT16 if config.bf16 and not config.lora else loaded
    seconds = costs.compute_seconds(update, _peak(gpu, config.bf16), a.utilisation, count)
    seconds += costs.compute_seconds(
        sampled, _peak(gpu, config.bf16 or loaded == BFLOAT16), a.utilisation, count
    )
    seconds += server.seconds
    if not config.vllm:
        read = multiplied * b.multiplied + costs.cache_bytes(
            b, sizes.rows, sizes.prompt + sizes.reply, loaded
        )
        if config.lora:  # peft copies the tables, rows put in, at every token
            read += FLOAT32 * _adapters(model, config) + 2 * loaded * b.tables
        seconds += costs.decode_seconds(sizes.batches * sizes.longest, read, gpu, a.bandwidth)
    conversation = model.image_tokens + _turns(recipe) * (a.question_tokens + a.answer_tokens)

    def memory(checkpointing: bool, micro: int, share: int) -> Memory:
        # Checkpointing needs rows of their own: the prompt is then computed for each of its answers.
        answers: float = micro * config.samples * sizes.longest
        held: float = micro * sizes.prompt * (config.samples if checkpointing else 1) + answers
        if config.replay_weight:
            replayed = config.replay_batch * micro / config.prompts_per_update
            held += replayed * conversation
            answers += replayed * _turns(recipe) * a.answer_tokens
        # Split models are gathered, and their reference is kept, in the type of the products; whole ones as loaded.
        number = BFLOAT16 if config.bf16 and share > 1 else loaded
        cache = costs.cache_bytes(b, sizes.rows, sizes.prompt + sizes.longest, number)
        cache += costs.drawing_bytes(b, sizes.rows)
        passes = (1 if checkpointing else 2) + bool(
            config.replay_weight
        )  # prompts and answers apart; the replay
        copied = config.kl and not config.lora
        return replace(
            _state(recipe, model, config, share, checkpointing=checkpointing, passes=passes),
            reference=number * b.parameters / share if copied else 0.0,
            activations=costs.activation_bytes(
                b, held, bf16=config.bf16, checkpointing=checkpointing, rank=_rank(config)
            ),
            logits=costs.logit_bytes(b, answers, bf16=config.bf16),
            cache=0.0 if config.vllm else cache,
            sampler=number * b.parameters if share > 1 else 0.0,
            server=server.share,
            asleep=server.asleep,
        )

    half = config.max_new_tokens // 2
    change, cut = "", config
    if server.smaller and config.vllm:
        change = f"--set rl.vllm.memory={server.smaller:g}"
        cut = config.model_copy(
            update={"vllm": config.vllm.model_copy(update={"memory": server.smaller})}
        )
    elif half >= SHORTEST and not server.share:
        change, cut = (
            f"--set rl.max_new_tokens={half}",
            config.model_copy(update={"max_new_tokens": half}),
        )
    smaller = None
    if change:
        smaller = change, _rl(recipe.model_copy(update={"rl": cut}), model, gpu, count, a, names)
    return StageCost(
        names=tuple(names),
        runs=len(names) * len(recipe.seeds),
        gpus=count,
        disk=_disk(recipe, model, config),
        work=f"{_rl_rollouts(recipe):,} rollouts of {config.prompts_per_rollout} prompts x {config.samples} answers"
        + server.work,
        tokens=sizes.asked * (sizes.prompt + config.samples * sizes.reply),
        flops=update + sampled,
        seconds=seconds,
        memory=memory,
        checkpointing=config.gradient_checkpointing,
        checkpointing_key="rl.gradient_checkpointing",
        micro=config.micro_batch_size,
        micro_key="rl.micro_batch_size",
        batch=config.prompts_per_update,
        batch_key="rl.prompts_per_update",
        smaller=smaller,
        whole=bool(config.lora),
    )


def _rl_flops(recipe: Recipe, model: Model, a: Assumptions, sizes: _Answers) -> tuple[float, float]:
    """Operations of all updates, and of all sampling and scoring.

    With `rl.vllm` own log-probabilities come in place of the sampling, or beside it where that is on the same GPUs.
    """
    config, b, adapters = recipe.rl, model.numbers, _adapters(model, recipe.rl)
    asked, length = sizes.asked, sizes.prompt + sizes.reply
    answered = asked * config.samples * sizes.reply
    again = (
        config.samples if config.gradient_checkpointing else 1
    )  # how often a prompt is computed in an update
    update = costs.training_flops(
        b,
        asked * again * sizes.prompt + answered,
        length,
        answered,
        checkpointing=config.gradient_checkpointing,
        adapters=adapters,
    )
    update += costs.vision_flops(b, asked * again * model.patches) * _vision_passes(config)
    if config.replay_weight:
        turns = _turns(recipe)
        each = model.image_tokens + turns * (a.question_tokens + a.answer_tokens)
        replayed = asked / config.prompts_per_update * config.replay_batch
        update += costs.training_flops(
            b,
            replayed * each,
            each,
            replayed * turns * a.answer_tokens,
            checkpointing=config.gradient_checkpointing,
            adapters=adapters,
        )
    once = costs.forward_flops(b, asked * sizes.prompt, sizes.prompt) + costs.vision_flops(
        b, asked * model.patches
    )
    once += costs.forward_flops(b, answered, length, answers=answered)
    return update, once * (1 + bool(config.kl) + bool(config.vllm and config.vllm.serve))


def _head(recipe: Recipe, model: Model, gpu: Gpu, count: int, a: Assumptions) -> StageCost:
    """Features once, then the head, each GPU with a part of both. The backbone stays loaded."""
    b, config, head = model.numbers, recipe.head_training, recipe.head
    shape = HeadShape(
        vlm_width=b.width,
        action_dim=a.action_dim,
        state_dim=a.state_dim,
        horizon=recipe.tokenizer.horizon,
    )
    with torch.device("meta"):
        built = FlowMatchingHead(head, shape)
    parameters = sum(p.numel() for p in built.parameters())
    over_vlm = (
        sum(p.numel() for p in built.vlm_blocks.parameters())
        + shape.vlm_width * head.vlm_inner_width
    )
    length = model.image_tokens + a.question_tokens
    collected = recipe.collect.downstream.episodes_per_task * len(recipe.collect.downstream_names())
    frames = collected * a.episode_steps / config.features.every * (config.features.variants or 1)
    features = costs.forward_flops(b, frames * length, length, layers=recipe.backbone.layer)
    features += costs.vision_flops(b, frames * model.patches)
    sequence = config.draws * (recipe.tokenizer.horizon + head.future_tokens + head.proprioception)
    training = (
        3
        * 2
        * config.steps
        * config.batch_size
        * (over_vlm * length + (parameters - over_vlm) * sequence)
    )
    bf16 = config.precision == "bfloat16"

    def memory(checkpointing: bool, micro: int, share: int) -> Memory:
        state = costs.training_state(parameters, parameters, cast=parameters if bf16 else 0)
        kept = micro * (
            head.vlm_layers * length * costs.block_bytes(head.vlm_inner_width, bf16=bf16)
            + head.layers * sequence * costs.block_bytes(head.width, bf16=bf16)
            + head.layers / 2 * length * costs.block_context_bytes(head.width, bf16=bf16)
        )
        weights = state.weights * (2 if config.ema else 1)
        return replace(
            state, weights=weights, reference=_number(recipe) * b.parameters, activations=kept
        )

    seconds = costs.compute_seconds(
        features, _peak(gpu, _number(recipe) == BFLOAT16), a.utilisation, count
    )
    seconds += costs.compute_seconds(training, _peak(gpu, bf16), a.utilisation, count)
    return StageCost(
        names=("head",),
        runs=len(recipe.arms) * len(recipe.seeds),
        gpus=count,
        work=f"{frames:,.0f} frames of {length:,.0f} tokens, then {config.steps:,} steps of {config.batch_size}",
        tokens=frames * length,
        flops=features + training,
        seconds=seconds,
        memory=memory,
        disk={
            "features": frames * length * token_bytes(b.width, recipe.backbone.layer_dtype),
            "checkpoint": (16 if config.ema else 12) * parameters,
            "head": FLOAT32 * parameters,
        },
        checkpointing=False,
        checkpointing_key="",
        micro=math.ceil(config.batch_size / count),
        micro_key="",
        batch=config.batch_size,
        batch_key="head_training.batch_size",
    )
