"""Golden values, computed by hand."""

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.plan import arithmetic as costs
from roboalign.plan.arithmetic import BackboneSize, Memory

# Two layers of width 4, queries of 4, keys of 2, feed-forward 8, 10 tokens, embeddings apart:
# a layer 4*4 + 2*4*2 + 4*4 + 3*4*8 = 144, two 288; tables 2 * 40; vision 32.
SMALL = BackboneSize(
    parameters=400,
    vision=32,
    table=40,
    tied=False,
    layers=2,
    width=4,
    query=4,
    key_value=2,
    mlp=8,
    vocabulary=10,
)


def test_parameters_by_part():
    assert (SMALL.body, SMALL.tables, SMALL.multiplied, SMALL.unit) == (288, 80, 328, 224)


def test_new_tokens_get_rows_in_both_tables_or_in_the_shared_one():
    grown = SMALL.grown(5)
    assert (grown.parameters, grown.table, grown.vocabulary, grown.body) == (440, 60, 15, 288)
    tied = costs.replace(SMALL, tied=True, parameters=360).grown(5)
    assert (tied.parameters, tied.body) == (380, 288)


def test_state_of_adamw():
    """4 bytes a weight, 4 a gradient, 8 of moments; autocast's copies take 2."""
    assert costs.training_state(400, 368) == Memory(weights=1600, gradients=1472, optimizer=2944)
    assert costs.training_state(400, 368, cast=328).casts == 656
    sharded = costs.training_state(400, 368, cast=328, unit=224, share=4)
    # Gathered in bfloat16; whole when it is loaded.
    assert sharded == Memory(weights=400, gradients=368, optimizer=736, gathered=448, whole=1600)
    assert costs.training_state(400, 368, unit=224, share=4).gathered == 896


def test_the_7b_model_needs_sixteen_bytes_a_trained_parameter():
    whole = costs.training_state(8_292_166_656, 8_292_166_656)
    assert whole.total == 16 * 8_292_166_656


def test_what_lora_trains():
    # a layer: query and output 2*(4+4), key and value 2*(4+2), feed-forward 3*(4+8); 3 rows in each of two tables
    assert costs.lora_parameters(SMALL, rank=5, rows=3) == 5 * 2 * (16 + 12 + 36) + 3 * 4 * 2
    assert costs.lora_parameters(costs.replace(SMALL, tied=True), rank=1, rows=3) == 2 * 64 + 3 * 4


def test_state_with_lora():
    """Frozen weights as they are loaded, 16 bytes for each number that is trained."""
    held = {"gradients": 4 * 30, "optimizer": 8 * 30}
    bf16, bare, cast = (
        {"number": n, "bf16": autocast} for n, autocast in ((2, True), (4, False), (4, True))
    )
    one = {"checkpointing": False, "passes": 1}
    # a table in the type of the products for each pass, and a gradient in that of the weights
    assert costs.lora_state(SMALL, 30, **bf16, **one) == Memory(
        weights=800 + 120, casts=60, tables=40 * 4, **held
    )
    assert costs.lora_state(SMALL, 30, **bare, **one) == Memory(
        weights=1600 + 120, tables=40 * 8, **held
    )
    # autocast's copies of frozen float32 weights: of all 288 of the text layers in each pass, or of the layer at work
    assert costs.lora_state(SMALL, 30, **cast, **one).casts == 2 * 288 + 60
    twice = costs.lora_state(SMALL, 30, **cast, checkpointing=False, passes=2)
    assert (twice.casts, twice.tables) == (2 * 2 * 288 + 60, 40 * (2 * 2 + 4))
    assert costs.lora_state(SMALL, 30, **cast, checkpointing=True, passes=2).casts == 2 * 144 + 60


def test_activations_of_one_layer():
    # float32: norms 2*4*(2*4) = 64; products 4 * (2*4 + 4*4 + 4*8) = 224
    assert costs.layer_bytes(SMALL, bf16=False) == 288
    # bfloat16: norms as before; products 2 * (5*4 + 4*4 + 4*8) = 136
    assert costs.layer_bytes(SMALL, bf16=True) == 200
    # with norms of queries and keys: 8 * (4 + 2) more
    assert costs.layer_bytes(costs.replace(SMALL, normed_queries=True), bf16=True) == 248


def test_adapters_keep_what_lies_between_their_matrices():
    # and frozen norms (32 of their 64 bytes) keep no normalised form
    assert costs.layer_bytes(SMALL, bf16=False, rank=5) == 288 - 32 + 4 * 7 * 5
    assert costs.activation_bytes(SMALL, 3, bf16=True, checkpointing=False, rank=5) == 3 * 2 * (
        200 - 32 + 2 * 7 * 5
    )


def test_activations_with_and_without_checkpointing():
    assert costs.activation_bytes(SMALL, 3, bf16=False, checkpointing=False) == 3 * 2 * 288
    # the input of two layers at 16 bytes, and one layer whole
    assert costs.activation_bytes(SMALL, 3, bf16=False, checkpointing=True) == 3 * (2 * 16 + 288)


def test_logits_cache_and_checkpoints():
    assert costs.logit_bytes(SMALL, 6, bf16=True) == 6 * 10 * 14
    assert costs.logit_bytes(SMALL, 6, bf16=False) == 6 * 10 * 12
    assert (
        costs.cache_bytes(SMALL, rows=5, length=7, number=4) == 2 * 4 * 2 * 2 * 5 * 7
    )  # keys and values, 2 layers
    assert costs.checkpoint_bytes(400, 368) == 3 * (1600 + 2944)


def test_operations():
    # 2 a parameter, and 2 * 2 layers * 4 channels * 6 tokens of attention
    assert costs.forward_flops(SMALL, 3, 6) == 3 * (2 * 288 + 96)
    assert costs.forward_flops(SMALL, 3, 6, layers=1) == 1.5 * (2 * 288 + 96)
    assert costs.forward_flops(SMALL, 3, 6, answers=2) == 3 * (2 * 288 + 96) + 2 * 40 * 2
    once = costs.forward_flops(SMALL, 3, 6)
    assert costs.training_flops(SMALL, 3, 6, 0, checkpointing=False) == 3 * once
    assert costs.training_flops(SMALL, 3, 6, 0, checkpointing=True) == 4 * once
    # frozen weights get no gradient: one product fewer; 6 operations a token and trained number
    assert (
        costs.training_flops(SMALL, 3, 6, 0, checkpointing=False, adapters=30)
        == 2 * once + 3 * 6 * 30
    )


def test_seconds():
    assert costs.compute_seconds(1e15, 1e14, 0.5, 4) == 5
    assert costs.decode_seconds(100, 1e9, costs.GPUS["H100"], 0.5) == pytest.approx(100 / 1675)


def test_the_peak_is_the_rollout_or_the_update_not_both():
    held = Memory(weights=10, optimizer=20, reference=5, gathered=1)
    assert costs.replace(held, gradients=7, activations=3, cache=4).total == 46
    assert costs.replace(held, gradients=7, activations=3, cache=40).total == 76
    assert costs.replace(held, gradients=7, activations=3, cache=4, sampler=9).total == 49
    assert (
        costs.replace(held, casts=6, cache=4).rollout == 46
    )  # the copies are there with the own sampler alone
    assert costs.replace(held, casts=6, sampler=4).rollout == 40
    assert costs.replace(held, whole=80).total == costs.replace(held, whole=80).start == 95


def test_gpus_by_name():
    assert costs.parse_gpus("8xH100") == (costs.GPUS["H100"], 8)
    assert costs.parse_gpus("h200") == (costs.GPUS["H200"], 1)
    for wrong in ("8xB9000", "0xH100", "x", "eight H100", ""):
        with pytest.raises(RoboAlignError) as failed:
            costs.parse_gpus(wrong)
        assert all(name in str(failed.value) for name in (wrong, "--gpus", *costs.GPUS))
