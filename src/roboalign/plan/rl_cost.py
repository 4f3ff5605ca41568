"""Estimate what GRPO costs: rollouts, sampled by the trainer itself or by vLLM, and updates on
their answers."""

import math
from dataclasses import dataclass, replace

from roboalign.core.errors import RoboAlignError
from roboalign.plan import arithmetic
from roboalign.plan.arithmetic import BFLOAT16, FLOAT32, Memory
from roboalign.plan.stage_cost import CostInputs, StageCost, Tuning

GENERATED_ROWS = 256  # answers that `mllm.generate` samples at a time
STEP = 0.1  # step in which a smaller `rl.vllm.memory` is tried
# shortest answer, in tokens, that a plan advises: it must hold a reasoning and an action
SHORTEST = 128


def rl_cost(asked: CostInputs, names: list[str]) -> StageCost:
    """Return the cost of the stages `names`, which train as `rl` does.

    Raises RoboAlignError if a vLLM server's share of the GPU cannot hold its weights.
    """
    config, rl = asked.recipe.rl, _Rl(asked, _rollout(asked))
    server, rollout = _server(asked, rl.rollout), rl.rollout
    update, sampled = rl.update_flops(), rl.sampling_flops()
    seconds = asked.seconds(update, bf16=config.bf16)
    seconds += asked.seconds(sampled, bf16=config.bf16 or rl.loaded == BFLOAT16)
    seconds += server.seconds if config.vllm else rl.decode_seconds()

    def memory(checkpointing: bool, micro: int, share: int) -> Memory:
        own = rl.memory(checkpointing, micro, share)
        return replace(own, server=server.share, asleep=server.asleep)

    sizes = f"{config.prompts_per_rollout} prompts x {config.samples} answers"
    return StageCost(
        names=tuple(names),
        runs=len(names) * len(asked.recipe.seeds),
        gpus=asked.count,
        disk=rl.tuning.disk,
        work=f"{asked.rollouts:,} rollouts of {sizes}{server.work}",
        tokens=rollout.prompts * (rollout.prompt + config.samples * rollout.reply),
        flops=update + sampled,
        seconds=seconds,
        memory=memory,
        checkpointing=config.gradient_checkpointing,
        checkpointing_key="rl.gradient_checkpointing",
        micro=config.micro_batch_size,
        micro_key="rl.micro_batch_size",
        batch=config.prompts_per_update,
        batch_key="rl.prompts_per_update",
        smaller=_smaller(asked, names, server),
        whole=bool(config.lora),
    )


@dataclass(frozen=True)
class _Rollout:
    """The sizes of a GRPO rollout, lengths in tokens."""

    prompt: float
    reply: float
    longest: int
    rows: int
    """Answers that a GPU samples at a time."""
    batches: int
    """Number of such batches, over all rollouts."""
    prompts: int
    """Number of prompts, over all rollouts."""


def _rollout(asked: CostInputs) -> _Rollout:
    config = asked.recipe.rl
    own = math.ceil(config.prompts_per_rollout / asked.count)  # of one GPU
    at_once = min(own, max(1, GENERATED_ROWS // config.samples))
    return _Rollout(
        prompt=asked.model.image_tokens + asked.assumed.question_tokens,
        reply=min(asked.assumed.reply_tokens, config.max_new_tokens),
        longest=config.max_new_tokens,
        rows=at_once * config.samples,
        batches=asked.rollouts * math.ceil(own / at_once),
        prompts=asked.rollouts * config.prompts_per_rollout,
    )


@dataclass(frozen=True)
class _Server:
    """The vLLM server of `rl.vllm.serve` on each GPU: its bytes, and the seconds that it
    decodes."""

    share: float = 0
    asleep: float = 0
    seconds: float = 0
    work: str = ""
    smaller: float = 0
    """A smaller `rl.vllm.memory` that holds its weights and the cache of one group of answers; 0:
    there is none."""


def _server(asked: CostInputs, rollout: _Rollout) -> _Server:
    """Return the server's sizes. Raises RoboAlignError if its share of the GPU cannot hold its
    weights."""
    config, vllm, b, gpu = asked.recipe.rl, asked.recipe.rl.vllm, asked.model.numbers, asked.gpu
    if vllm is None:
        return _Server()
    if not vllm.serve:
        return _Server(work=", sampled by a server whose GPUs are not counted")
    float32 = any(option.endswith("float32") for option in vllm.options)
    number = FLOAT32 if float32 else BFLOAT16  # vLLM casts float32 weights unless told otherwise
    share, weights = vllm.memory * gpu.memory, number * b.parameters
    if share <= weights:
        raise RoboAlignError(
            f"{vllm.memory:g} of {gpu.name} is {share / 1e9:.3g} GB, and the server's weights are "
            f"{weights / 1e9:.3g} GB",
            where="rl.vllm.memory",
            fix=f"give it more than {weights / gpu.memory:.2g}, or take larger GPUs",
        )
    own = math.ceil(config.prompts_per_rollout / asked.count)
    rows = min(own, vllm.concurrency) * config.samples
    # When one answer ends, the next begins.
    steps = max(rollout.longest, own * config.samples * rollout.reply / rows)
    length = rollout.prompt + rollout.reply
    read = number * b.multiplied + arithmetic.cache_bytes(b, rows, length, number)
    longest = rollout.prompt + rollout.longest
    group = arithmetic.cache_bytes(b, config.samples, longest, number)
    less = round(vllm.memory - STEP, 2)
    return _Server(
        share=share,
        asleep=min(asked.assumed.asleep, share) if vllm.sleep else share,
        seconds=asked.decode_seconds(asked.rollouts * steps, read),
        work=f", sampled by vLLM on the same GPUs ({weights / 1e9:.3g} GB of weights)",
        smaller=less if less * gpu.memory > weights + group else 0,
    )


def _smaller(asked: CostInputs, names: list[str], server: _Server) -> tuple[str, StageCost] | None:
    """Return a change of the recipe under which a rollout takes less memory, and the cost under
    it."""
    config = asked.recipe.rl
    half = config.max_new_tokens // 2
    if server.smaller and config.vllm:
        change = f"--set rl.vllm.memory={server.smaller:g}"
        vllm = config.vllm.model_copy(update={"memory": server.smaller})
        cut = config.model_copy(update={"vllm": vllm})
    elif half >= SHORTEST and not server.share:
        change = f"--set rl.max_new_tokens={half}"
        cut = config.model_copy(update={"max_new_tokens": half})
    else:
        return None
    recipe = asked.recipe.model_copy(update={"rl": cut})
    return change, rl_cost(replace(asked, recipe=recipe), names)


@dataclass(frozen=True)
class _Rl:
    """The trainer's own part: sampling without a server, scoring, and updates."""

    asked: CostInputs
    rollout: _Rollout

    @property
    def tuning(self) -> Tuning:
        return Tuning(self.asked, self.asked.recipe.rl)

    @property
    def loaded(self) -> int:
        """Return the bytes of a weight as loaded: float32, unless it is frozen and LoRA's adapters
        are trained."""
        return self.asked.number if self.asked.recipe.rl.lora else FLOAT32

    @property
    def replayed(self) -> float:
        """Return the replayed conversations for each prompt of an update."""
        config = self.asked.recipe.rl
        return config.replay_batch / config.prompts_per_update if config.replay_weight else 0

    def update_flops(self) -> float:
        """Return the operations of all updates."""
        asked, config, rollout = self.asked, self.asked.recipe.rl, self.rollout
        # Checkpointing needs separate rows: the prompt is then computed for each of its answers.
        times = config.samples if config.gradient_checkpointing else 1
        answered = rollout.prompts * config.samples * rollout.reply
        prompts = rollout.prompts * times
        length = rollout.prompt + rollout.reply
        flops = self.tuning.flops(prompts * rollout.prompt + answered, length, answered)
        vision = arithmetic.vision_flops(asked.model.numbers, prompts * asked.model.patches)
        flops += vision * self.tuning.vision_passes
        if config.replay_weight:
            samples, turns = rollout.prompts * self.replayed, asked.turns
            each = asked.conversation_tokens(turns)
            answers = samples * turns * asked.assumed.answer_tokens
            flops += self.tuning.flops(samples * each, each, answers)
        return flops

    def sampling_flops(self) -> float:
        """Return the operations of all sampling and scoring.

        With `rl.vllm`, computing the trainer's own log-probabilities replaces sampling; if the
        server is on the same GPUs, both are counted.
        """
        config, rollout, model = self.asked.recipe.rl, self.rollout, self.asked.model
        answered = rollout.prompts * config.samples * rollout.reply
        length = rollout.prompt + rollout.reply
        once = arithmetic.forward_flops(
            model.numbers, rollout.prompts * rollout.prompt, rollout.prompt
        )
        once += arithmetic.vision_flops(model.numbers, rollout.prompts * model.patches)
        once += arithmetic.forward_flops(model.numbers, answered, length, answers=answered)
        return once * (1 + bool(config.kl) + bool(config.vllm and config.vllm.serve))

    def decode_seconds(self) -> float:
        """Return the seconds that the trainer's own sampling waits for memory.

        Under bf16 it multiplies with the copies that autocast makes once of the trained weights.
        """
        b, config, rollout = self.asked.model.numbers, self.asked.recipe.rl, self.rollout
        multiplied = BFLOAT16 if config.bf16 and not config.lora else self.loaded
        length = rollout.prompt + rollout.reply
        read: float = multiplied * b.multiplied
        read += arithmetic.cache_bytes(b, rollout.rows, length, self.loaded)
        if config.lora:  # peft copies the tables, with rows inserted, at every token
            read += FLOAT32 * self.tuning.adapters + 2 * self.loaded * b.tables
        return self.asked.decode_seconds(rollout.batches * rollout.longest, read)

    def memory(self, checkpointing: bool, micro: int, share: int) -> Memory:
        """Return memory as StageCost.memory, without a server."""
        asked, config, rollout = self.asked, self.asked.recipe.rl, self.rollout
        b, replayed = asked.model.numbers, micro * self.replayed
        answers: float = micro * config.samples * rollout.longest
        held = micro * rollout.prompt * (config.samples if checkpointing else 1) + answers
        held += replayed * asked.conversation_tokens(asked.turns)
        answers += replayed * asked.turns * asked.assumed.answer_tokens
        # Sharded models are gathered, and their reference is kept, in the type of the products;
        # whole models as loaded.
        number = BFLOAT16 if config.bf16 and share > 1 else self.loaded
        cache = arithmetic.cache_bytes(b, rollout.rows, rollout.prompt + rollout.longest, number)
        cache += arithmetic.drawing_bytes(b, rollout.rows)
        # Prompts and answers separately; then the replay.
        passes = (1 if checkpointing else 2) + bool(config.replay_weight)
        copied = config.kl and not config.lora
        return replace(
            self.tuning.state(share, checkpointing=checkpointing, passes=passes),
            reference=number * b.parameters / share if copied else 0.0,
            activations=self.tuning.activations(held, checkpointing=checkpointing),
            logits=arithmetic.logit_bytes(b, answers, bf16=config.bf16),
            cache=0.0 if config.vllm else cache,
            sampler=number * b.parameters if share > 1 else 0.0,
        )
