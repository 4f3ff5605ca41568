"""Sample many answers to many prompts, with one prefill per prompt shared by its samples and a
preallocated cache.

Hugging Face's `generate` prefills a prompt once for every sample and grows its cache by
concatenation, which copies the whole cache at every token. The loop below avoids both for the
families in FAST; other models use `generate`. Tests assert that the greedy tokens are the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache, DynamicLayer

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded, Prompt, collate, encode_prompt, end_ids
from roboalign.mllm.ending import Ending
from roboalign.mllm.load import Mllm

FAST = frozenset({"qwen2_5_vl", "qwen3_vl"})
COMPACT_BELOW = 0.75  # share of cached rows still running below which finished ones are dropped


@dataclass(frozen=True)
class Generation:
    """Sampled answers, indexed [prompt][sample]; `tokens` includes a sampled end token."""

    tokens: list[list[list[int]]]
    logprobs: list[list[list[float]]]
    """Log-probability of each token: log-softmax of the model's own logits / temperature, as a
    trainer computes it (at temperature 0: of the logits). The few suppressed tokens stay in the
    normalization."""
    finished: list[list[bool]]
    """Whether an end token or the stop text ended the answer. False: cut at max_new_tokens."""
    n_prefill_tokens: int
    """Prompt tokens computed, without padding."""
    n_decoded_tokens: int
    """Tokens sampled, over all answers."""


def generate(
    mllm: Mllm,
    prompts: Sequence[Prompt | Encoded],
    *,
    samples: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    stop: str | None = None,
    seed: int | Sequence[int] = 0,
    max_rows: int = 256,
) -> Generation:
    """Sample `samples` answers to each prompt from softmax(logits / temperature); greedy at
    temperature 0.

    An answer ends with an end token, or as soon as its text contains `stop`. Tokens that stand for
    images and ids unknown to the tokenizer are never sampled: the former crash the model, the
    latter cannot be decoded. `max_rows` limits how many answers are computed at a time.

    The same arguments give the same answers. Each prompt has its own stream of random numbers, from
    `seed` and its index among the prompts, or from its own seed if `seed` is a sequence. Answers
    therefore do not depend on what else is in the batch, except for rounding.
    """
    if samples < 1 or max_new_tokens < 1 or temperature < 0:
        problem = f"samples {samples}, max_new_tokens {max_new_tokens}, temperature {temperature}"
        raise RoboAlignError(
            f"cannot generate with {problem}",
            fix="use samples and max_new_tokens >= 1, temperature >= 0",
        )
    decode = _decode if mllm.model.config.model_type in FAST else _decode_with_hf
    seeds = (
        [(seed, place) for place in range(len(prompts))]
        if isinstance(seed, int)
        else [(one,) for one in seed]
    )
    encoded = [
        one if isinstance(one, Encoded) else encode_prompt(mllm, one.question, one.images)
        for one in prompts
    ]
    size = max(1, max_rows // samples)
    tokens: list[list[int]] = []
    logprobs: list[list[float]] = []
    finished: list[bool] = []
    with _evaluating(mllm), torch.no_grad():
        for start in range(0, len(encoded), size):
            draws = torch.cat(
                [_draws(one, samples, max_new_tokens) for one in seeds[start : start + size]]
            )
            rows = decode(
                mllm,
                encoded[start : start + size],
                samples,
                max_new_tokens,
                temperature,
                stop,
                draws,
            )
            lengths = rows.lengths.tolist()
            tokens += [row[:length] for row, length in zip(rows.tokens.tolist(), lengths)]
            logprobs += [row[:length] for row, length in zip(rows.logprobs.tolist(), lengths)]
            finished += rows.finished.tolist()
    return Generation(
        tokens=[tokens[i : i + samples] for i in range(0, len(tokens), samples)],
        logprobs=[logprobs[i : i + samples] for i in range(0, len(tokens), samples)],
        finished=[finished[i : i + samples] for i in range(0, len(tokens), samples)],
        n_prefill_tokens=sum(len(one.input_ids) for one in encoded),
        n_decoded_tokens=sum(len(row) for row in tokens),
    )


def suppressed_ids(mllm: Mllm) -> list[int]:
    """Return the ids never sampled: image and video placeholders, and rows beyond the tokenizer."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    placeholders = {getattr(mllm.model.config, name, None) for name in names} | set(
        mllm.processor.image_token_ids
    )
    beyond = range(len(mllm.tokenizer), mllm.model.get_output_embeddings().weight.shape[0])
    return sorted({token for token in placeholders if token is not None} | set(beyond))


@dataclass
class _Rows:
    """Hold what has been sampled so far; R = prompts x samples rows."""

    tokens: torch.Tensor  # int64 [R, max_new_tokens], on the CPU
    logprobs: torch.Tensor  # float32 [R, max_new_tokens]
    lengths: torch.Tensor  # int64 [R]
    finished: torch.Tensor  # bool [R]

    @classmethod
    def empty(cls, rows: int, columns: int) -> "_Rows":
        shape = (rows, columns)
        tokens, logprobs = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        return cls(
            tokens,
            logprobs,
            torch.zeros(rows, dtype=torch.long),
            torch.zeros(rows, dtype=torch.bool),
        )

    def write(
        self, rows: torch.Tensor, column: int, tokens: torch.Tensor, logprobs: torch.Tensor
    ) -> None:
        self.tokens[rows, column], self.logprobs[rows, column], self.lengths[rows] = (
            tokens,
            logprobs,
            column + 1,
        )


class _PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, copied from a prefilled layer into a buffer for all tokens."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, samples: int, room: int) -> None:
        super().__init__()
        self.length = keys.shape[-2]
        self.buffers = [self._widen(states, samples, room) for states in (keys, values)]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    @staticmethod
    def _widen(states: torch.Tensor, samples: int, room: int) -> torch.Tensor:
        batch, heads, length, width = states.shape
        buffer = states.new_empty(batch * samples, heads, length + room, width)
        buffer[:, :, :length] = states.repeat_interleave(samples, dim=0)
        return buffer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, self.length : end] = states
        self.length = end
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]


def _decode(
    mllm: Mllm,
    encoded: Sequence[Encoded],
    samples: int,
    max_new_tokens: int,
    temperature: float,
    stop: str | None,
    draws: torch.Tensor,
) -> _Rows:
    """Decode for Qwen's multimodal families, whose position ids continue from the prompt's by
    `rope_deltas`."""
    batch = _inputs(mllm, encoded)
    prefilled = DynamicCache(config=mllm.model.config)
    if "image_grid_thw" not in batch:  # the model would count the padding
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = mllm.model(
        **batch, past_key_values=prefilled, use_cache=True, logits_to_keep=1
    ).logits[:, -1]
    start = batch["attention_mask"].sum(1)
    if "image_grid_thw" in batch:
        start = start + mllm.model.model.rope_deltas[:, 0]
    position = start.repeat_interleave(samples)
    mllm.model.model.rope_deltas = (
        None  # the model's own stored copy must not reach the next forward
    )
    filled: list[Any] = prefilled.layers
    cache = Cache(
        layers=[_PreallocatedLayer(one.keys, one.values, samples, max_new_tokens) for one in filled]
    )
    logits = logits.repeat_interleave(samples, dim=0)
    mask = batch["attention_mask"].repeat_interleave(samples, dim=0)
    mask = torch.cat([mask, mask.new_ones(len(mask), max_new_tokens)], dim=1)
    rows = _Rows.empty(len(mask), max_new_tokens)
    active = torch.arange(len(mask))  # the row of `rows` that each row of the cache belongs to
    live = torch.ones(len(mask), dtype=torch.bool)
    ended_by = Ending(mllm, stop)
    suppressed = torch.tensor(suppressed_ids(mllm), device=mllm.device)
    for column in range(max_new_tokens):
        token, logprob = _pick(logits, temperature, suppressed, draws[active, column])
        rows.write(active[live], column, token.cpu()[live], logprob.cpu()[live])
        ended = live & ended_by(rows.tokens[active, : column + 1])
        rows.finished[active[ended]] = True
        live &= ~ended
        if not live.any() or column + 1 == max_new_tokens:
            return rows
        if live.float().mean() <= COMPACT_BELOW:
            keep = live.nonzero()[:, 0]
            cache.batch_select_indices(keep.to(mllm.device))
            token, position, mask = (
                tensor[keep.to(mllm.device)] for tensor in (token, position, mask)
            )
            active, live = active[keep], live[keep]
        logits = mllm.model(
            input_ids=token[:, None],
            attention_mask=mask[:, : cache.get_seq_length() + 1],
            position_ids=(position + column)[None, :, None].expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return rows


def _decode_with_hf(
    mllm: Mllm,
    encoded: Sequence[Encoded],
    samples: int,
    max_new_tokens: int,
    temperature: float,
    stop: str | None,
    draws: torch.Tensor,
) -> _Rows:
    """Decode through `model.generate`, for any other model."""
    batch = _inputs(mllm, [one for one in encoded for _ in range(samples)])
    ends = Ending(mllm, stop)
    start = batch["input_ids"].shape[1]
    with _own_settings(mllm):
        output = mllm.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            suppress_tokens=suppressed_ids(mllm),
            logits_processor=LogitsProcessorList(
                [_Draw(temperature, draws, start)] if temperature else []
            ),
            stopping_criteria=StoppingCriteriaList([_StopAt(ends, start)]),
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = output.sequences[:, start:].cpu()
    logits = torch.stack(output.logits, dim=1).float().cpu() / (temperature or 1.0)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    rows = _Rows.empty(len(tokens), max_new_tokens)
    for column in range(tokens.shape[1]):
        live = (~rows.finished).nonzero()[:, 0]
        rows.write(live, column, tokens[live, column], logprobs[live, column])
        rows.finished[live] = ends(rows.tokens[live, : column + 1])
    return rows


class _Draw(LogitsProcessor):
    """Mask all tokens but the drawn one, so that `generate`'s greedy choice is our draw."""

    def __init__(self, temperature: float, draws: torch.Tensor, start: int) -> None:
        self.temperature, self.draws, self.start = temperature, draws, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logprobs = (scores.float() / self.temperature).log_softmax(-1)
        token = _drawn(logprobs, self.draws[:, input_ids.shape[1] - self.start])
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)  # type: ignore[return-value]


class _StopAt(StoppingCriteria):
    def __init__(self, ends: Ending, start: int) -> None:
        self.ends, self.start = ends, start

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        return self.ends(input_ids[:, self.start :].cpu()).to(input_ids.device)


def _inputs(mllm: Mllm, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    batch = collate(mllm, encoded, padding_side="left")
    del batch["labels"]
    return {key: value.to(mllm.device) for key, value in batch.items()}


def _pick(
    logits: torch.Tensor, temperature: float, suppressed: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose ids [R] from logits [R, V] and draws [R]; return ids and log-probabilities [R]."""
    logprobs = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    allowed = logprobs.index_fill(-1, suppressed, -torch.inf)
    token = _drawn(allowed, draws) if temperature else allowed.argmax(-1)
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def _draws(seed: tuple[int, ...], samples: int, max_new_tokens: int) -> torch.Tensor:
    """Return numbers in [0, 1), float64 [samples, max_new_tokens], one for each token of the
    answers to one prompt."""
    # 32 bits, so that no draw times a sum of probabilities rounds up to the sum.
    return torch.from_numpy(
        np.random.default_rng(seed).integers(2**32, size=(samples, max_new_tokens)) / 2**32
    )


def _drawn(logprobs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return ids [R], each where the summed probability exceeds the draw, from logprobs [R, V] and
    draws [R]. The probabilities need not sum to 1."""
    summed = logprobs.double().exp().cumsum(-1)
    passed = draws.to(summed)[:, None] * summed[:, -1:]
    return torch.searchsorted(summed, passed, right=True)[:, 0]


@contextmanager
def _own_settings(mllm: Mllm) -> Iterator[None]:
    """Disable the sampling settings of the model's folder within the context.

    A repetition penalty, for example, would sample from another distribution than the one whose
    log-probabilities are returned.
    """
    stored = mllm.model.generation_config
    mllm.model.generation_config = GenerationConfig(
        eos_token_id=sorted(end_ids(mllm)), pad_token_id=mllm.tokenizer.pad_token_id
    )
    try:
        yield
    finally:
        mllm.model.generation_config = stored


@contextmanager
def _evaluating(mllm: Mllm) -> Iterator[None]:
    """Switch dropout off within the context; restore the model's mode afterwards."""
    training = mllm.model.training
    mllm.model.eval()
    try:
        yield
    finally:
        mllm.model.train(training)
