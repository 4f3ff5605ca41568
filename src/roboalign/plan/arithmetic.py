"""Compute bytes, operations and seconds of a training by arithmetic, before anything starts.

Memory of weights, gradients and optimizer is exact. Activations are counted tensor by tensor for a
pre-norm decoder with a gated feed-forward layer and fused attention, as Hugging Face's models
compute it; the tests compare them with what autograd keeps. Time is operations over the GPU's peak
times an assumed utilization: an order of magnitude, not a promise. None of this has been compared
with a GPU yet.
"""

import re
from dataclasses import dataclass, replace

from roboalign.core.errors import RoboAlignError

FLOAT32, BFLOAT16 = 4, 2  # bytes
ADAMW_BYTES = 8  # both moments, float32
KEPT_CHECKPOINTS = 3  # the two that are kept, and the one being written


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in bytes, dense peaks in operations per second, memory bandwidth in bytes per
    second."""

    name: str
    memory: float
    bfloat16: float
    float32: float
    bandwidth: float


# NVIDIA's data sheets: tensor-core peaks without sparsity, float32 without TF32 (torch's default),
# SXM if there is one. Memory in their gigabytes, of 10^9 bytes: drivers report up to 7% more.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40", 40e9, 312e12, 19.5e12, 1.555e12),
        Gpu("A100", 80e9, 312e12, 19.5e12, 2.039e12),
        Gpu("H100", 80e9, 989e12, 67e12, 3.35e12),
        Gpu("H200", 141e9, 989e12, 67e12, 4.8e12),
        Gpu("L40S", 48e9, 362e12, 91.6e12, 0.864e12),
        Gpu("A6000", 48e9, 154.8e12, 38.7e12, 0.768e12),
        Gpu("L4", 24e9, 121e12, 30.3e12, 0.3e12),
        Gpu("RTX4090", 24e9, 165.2e12, 82.6e12, 1.008e12),
    )
}


def parse_gpus(text: str) -> tuple[Gpu, int]:
    """Parse `8xH100` or `H100` into the GPU and their number. Raises RoboAlignError on another form
    or an unknown name."""
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([A-Za-z0-9-]+)", text)
    names = {name.lower(): name for name in GPUS}
    if match is None or match[2].lower() not in names:
        raise RoboAlignError(
            f"`{text}` is no number of known GPUs",
            where="--gpus",
            fix=f"write for example 8xH100; known: {', '.join(GPUS)}",
        )
    return GPUS[names[match[2].lower()]], int(match[1] or 1)


@dataclass(frozen=True)
class BackboneSize:
    """The sizes of a multimodal LLM that costs depend on; widths in numbers, counts in
    parameters."""

    parameters: int
    vision: int
    """Parameters of these that are outside the text model and the embeddings."""
    table: int
    """Parameters of these in one embedding table."""
    tied: bool
    layers: int
    width: int
    query: int
    """Number of attention heads x their width."""
    key_value: int
    """Number of key (or value) heads x their width."""
    mlp: int
    vocabulary: int
    normed_queries: bool = False
    """Whether queries and keys pass their own norm (Qwen3)."""

    @property
    def body(self) -> int:
        """Return the parameters of the text layers, which every token is multiplied with."""
        return self.parameters - self.vision - self.tables

    @property
    def tables(self) -> int:
        """Return the parameters of the embeddings, input and output."""
        return self.table * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Return the parameters of text layers and output layer; rows of an input embedding are
        looked up, not multiplied."""
        return self.body + self.table

    @property
    def unit(self) -> int:
        """Return the parameters that a GPU holds whole when layers are sharded: the embeddings and
        one text layer."""
        return self.tables + self.body // self.layers

    def grown(self, rows: int) -> "BackboneSize":
        """Return the same size with `rows` more tokens in its vocabulary."""
        added = rows * self.width
        total = self.parameters + added * (1 if self.tied else 2)
        return replace(
            self, parameters=total, table=self.table + added, vocabulary=self.vocabulary + rows
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by what holds them."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    casts: float = 0
    """Autocast's bfloat16 copies of the weights."""
    gathered: float = 0
    """Under sharding: the whole embeddings, and the whole layer being computed."""
    reference: float = 0
    """A model that is not trained: GRPO's reference, the head's backbone."""
    tables: float = 0
    """With LoRA: the output embedding with the trained rows inserted, once per forward pass, and
    its gradient."""
    activations: float = 0
    logits: float = 0
    cache: float = 0
    """Keys and values of the rollouts; they are freed before the update begins."""
    sampler: float = 0
    """Under sharding: the whole copy of the policy that samples, or that is sent to a server; also
    freed before the update."""
    server: float = 0
    """The share of a vLLM server on this same GPU while it samples."""
    asleep: float = 0
    """The part of that share that it keeps while the trainer computes."""
    whole: float = 0
    """Under sharding: the whole model, which each GPU loads before it keeps only its part."""

    @property
    def held(self) -> float:
        """Return what stays in memory all the time."""
        return self.weights + self.optimizer + self.gathered + self.reference

    @property
    def start(self) -> float:
        """Return the bytes before the first update."""
        return self.weights + self.reference + self.whole

    @property
    def rollout(self) -> float:
        """Return the bytes while answers are sampled: the bfloat16 copies, but no activations or
        gradients.

        The copy of the policy that is written out for a server is also gone by the time the server
        samples.
        """
        own = self.cache + self.casts if self.cache else 0
        return self.held + max(self.server, self.asleep + own + self.sampler)

    @property
    def update(self) -> float:
        """Return the bytes while the weights are trained."""
        held = self.held + self.asleep
        return held + self.gradients + self.casts + self.tables + self.activations + self.logits

    @property
    def total(self) -> float:
        """Return the peak."""
        return max(self.start, self.rollout, self.update)


def training_state(
    parameters: int, trainable: int, *, cast: int = 0, unit: int = 0, share: int = 1
) -> Memory:
    """Return weights, gradients and AdamW's moments in float32, each divided over `share` GPUs.

    `cast`: trained parameters of which autocast keeps a bfloat16 copy because products use them (0:
    no bf16). `unit`: parameters that a GPU holds whole while it computes, if they are sharded:
    gathered in the type of the products, without autocast.
    """
    sharded = share > 1
    return Memory(
        weights=FLOAT32 * parameters / share,
        gradients=FLOAT32 * trainable / share,
        optimizer=ADAMW_BYTES * trainable / share,
        casts=0 if sharded else BFLOAT16 * cast,
        gathered=(BFLOAT16 if cast else FLOAT32) * unit if sharded else 0,
        whole=FLOAT32 * parameters if sharded else 0,
    )


def lora_parameters(b: BackboneSize, rank: int, rows: int) -> int:
    """Return what LoRA trains: two matrices for each linear layer of the text model, and `rows`
    rows of the embeddings."""
    ends = 2 * (b.width + b.query) + 2 * (b.width + b.key_value) + 3 * (b.width + b.mlp)
    return rank * b.layers * ends + rows * b.width * (1 if b.tied else 2)


def lora_state(
    b: BackboneSize, trained: int, *, number: int, bf16: bool, checkpointing: bool, passes: int
) -> Memory:
    """Return frozen weights of `number` bytes each, `trained` additional parameters in float32, and
    what both require.

    `passes`: forward passes that are kept for one backward pass. In each one autocast casts frozen
    float32 weights again, and autograd keeps the casts: of all text layers, or under checkpointing
    of the layer being computed.
    """
    product = BFLOAT16 if bf16 else number
    frozen = b.body / b.layers if checkpointing else b.body * passes
    recast = BFLOAT16 * frozen if product < number else 0
    return Memory(
        weights=number * b.parameters + FLOAT32 * trained,
        gradients=FLOAT32 * trained,
        optimizer=ADAMW_BYTES * trained,
        casts=recast + (BFLOAT16 * trained if bf16 else 0),
        tables=(passes * product + number) * b.table,
    )


def layer_bytes(b: BackboneSize, *, bf16: bool, rank: int = 0) -> int:
    """Return what one text layer keeps of one token for the backward pass; with LoRA, including its
    adapters of `rank`.

    In float32: each norm's input and its normalized form. In the type of the products: the output
    of the two norms, queries, keys, values (repeated for each query head, as torch's attention
    requires if a batch is padded), the output of attention, gate, its activation, up, and their
    product. Under bf16 the residual stream and the norms stay in float32, and autocast copies a
    norm's output for each of its five readers (query, key, value; gate, up).
    """
    normed = 2 * b.width + (b.query + b.key_value if b.normed_queries else 0)
    products = (5 if bf16 else 2) * b.width + 4 * b.query + 4 * b.mlp + 7 * rank
    kept = (
        1 if rank else 2
    )  # the normalized form is for the gradient of the norm's weights, which LoRA freezes
    return kept * FLOAT32 * normed + (BFLOAT16 if bf16 else FLOAT32) * products


def activation_bytes(
    b: BackboneSize, tokens: float, *, bf16: bool, checkpointing: bool, rank: int = 0
) -> float:
    """Return the activations of `tokens` tokens through all text layers.

    Checkpointing keeps each layer's input, and one whole layer at a time. A frozen vision tower
    keeps nothing; what a trained one keeps is not counted.
    """
    whole = layer_bytes(b, bf16=bf16, rank=rank)
    return tokens * (b.layers * FLOAT32 * b.width + whole if checkpointing else b.layers * whole)


def logit_bytes(b: BackboneSize, tokens: float, *, bf16: bool) -> float:
    """Return the bytes of the loss on `tokens` answer tokens: the logits, their float32 form, its
    log-softmax, and the gradient."""
    return tokens * b.vocabulary * ((BFLOAT16 if bf16 else 0) + 3 * FLOAT32)


def cache_bytes(b: BackboneSize, rows: int, length: float, number: int) -> float:
    """Return the keys and values, of `number` bytes each, of `rows` answers of `length` tokens,
    prompt included."""
    return 2 * number * b.layers * b.key_value * rows * length


def drawing_bytes(b: BackboneSize, rows: int) -> float:
    """Return the bytes to draw the next token of `rows` answers.

    These are logits, their log-softmax with and without the suppressed tokens in float32, and
    probabilities and their sums in float64.
    """
    return rows * b.vocabulary * (3 * FLOAT32 + 2 * 8)


def checkpoint_bytes(parameters: int, trainable: int) -> float:
    """Return the bytes on disk while a stage trains: weights and both moments of each checkpoint
    kept or being written."""
    return KEPT_CHECKPOINTS * (FLOAT32 * parameters + ADAMW_BYTES * trainable)


def forward_flops(
    b: BackboneSize, tokens: float, length: float, *, answers: float = 0, layers: int | None = None
) -> float:
    """Return the operations of one pass over `tokens` text-model tokens in sequences of `length`,
    with the output layer for `answers` of them.

    Two operations per parameter and token; causal attention takes two products of `length`/2 keys
    per query channel.
    """
    share = (layers or b.layers) / b.layers
    attention = 2 * b.layers * b.query * length  # 2 products x 2 operations x length / 2
    return share * tokens * (2 * b.body + attention) + 2 * b.table * answers


def vision_flops(b: BackboneSize, patches: float) -> float:
    """Return the operations of one pass of the vision tower over `patches` patches, without
    attention within the image."""
    return 2 * b.vision * patches


def training_flops(
    b: BackboneSize,
    tokens: float,
    length: float,
    answers: float,
    *,
    checkpointing: bool,
    adapters: int = 0,
) -> float:
    """Return the operations of a forward pass and a backward pass of twice that.

    Checkpointing computes the forward pass of the layers once more. With `adapters`, trained
    parameters added to frozen weights, the backward pass is half of that, since the products for
    the weights' gradients are left out; those of the adapters are added.
    """
    again = forward_flops(b, tokens, length) if checkpointing else 0
    return (
        (2 if adapters else 3) * forward_flops(b, tokens, length, answers=answers)
        + again
        + 6 * adapters * tokens
    )


def compute_seconds(flops: float, peak: float, utilisation: float, gpus: int) -> float:
    """Return the seconds of `flops` operations at `utilisation` of the peak of each of `gpus`
    GPUs."""
    return flops / (peak * utilisation * gpus)


def decode_seconds(steps: float, bytes_read: float, gpu: Gpu, use: float) -> float:
    """Return the seconds of `steps` decoding steps, each of which reads `bytes_read` at the share
    `use` of the memory's rate."""
    return steps * bytes_read / (gpu.bandwidth * use)


def block_bytes(width: int, *, bf16: bool) -> int:
    """Return what one block of the head (attention, feed-forward four times as wide) keeps of one
    token.

    Two norms' inputs in float32; in the type of the products the norms' outputs, queries, keys,
    values, the output of attention, and the inner layer before and after its activation.
    """
    return 2 * FLOAT32 * width + (BFLOAT16 if bf16 else FLOAT32) * (2 + 3 + 1 + 2 * 4) * width


def block_context_bytes(width: int, *, bf16: bool) -> int:
    """Return the keys and values that a cross-attending block keeps of one token of its context."""
    return 2 * width * (BFLOAT16 if bf16 else FLOAT32)
