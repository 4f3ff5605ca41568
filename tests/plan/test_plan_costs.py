"""`roboalign plan`: its numbers against what autograd keeps, and what it says where a stage does not run."""

from pathlib import Path

import pytest
import torch
from backbone_models import FRAMES, TURNS, model_of

from roboalign.align.lora import LoraConfig, add_lora
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import collate, encode_conversation
from roboalign.mllm.presets import MODEL_PRESETS, meta_model, preset_config
from roboalign.plan import arithmetic as costs
from roboalign.plan.arithmetic import GPUS, Memory, parse_gpus
from roboalign.plan.costs import plan_costs
from roboalign.plan.model import Assumptions, assumptions, backbone_numbers
from roboalign.plan.stage_cost import StageCost
from roboalign.plan.text import describe_plan, duration, find_fix, quantity, size
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = RECIPES / "paper" / "qwen2_5_vl_7b.yaml"


def described(recipe: Recipe, gpus: str, price: float | None = None) -> str:
    return describe_plan(recipe, *parse_gpus(gpus), Assumptions(), price)


def kept_by_a_layer(name: str, *, bf16: bool, rank: int) -> tuple[float, float]:
    """Bytes a token that autograd keeps for one more text layer, and what the formula says; some rows are padded."""
    mllm = model_of(name)
    numbers = backbone_numbers(mllm.model)
    if rank:
        add_lora(mllm, LoraConfig(rank=rank), seed=0)
    model, every = mllm.model.train(), mllm.model.get_decoder().layers
    batch = collate(
        mllm, [encode_conversation(mllm, TURNS[: 1 + i % 2], [FRAMES[i]]) for i in range(4)]
    )
    del batch["labels"]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    totals = []
    for depth in (1, 2):
        model.get_decoder().layers = every[:depth]
        kept: list[torch.Tensor] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t) or t, lambda t: t
        )
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.model(**batch, use_cache=False)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        totals.append(sum(size for place, size in storages.items() if place not in own))
    casts = 2 * sum(p.numel() for p in every[1].parameters() if p.ndim > 1) if bf16 else 0
    measured = (totals[1] - totals[0] - casts) / batch["input_ids"].numel()
    return measured, costs.layer_bytes(numbers, bf16=bf16, rank=rank)


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_activations_are_what_autograd_keeps(name: str, bf16: bool, rank: int) -> None:
    """The rest is the mask, one number a pair of tokens, which weighs much beside a model as narrow as this."""
    measured, formula = kept_by_a_layer(name, bf16=bf16, rank=rank)
    assert 0.88 * measured < formula < 1.02 * measured


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_what_lora_trains_is_counted(name: str) -> None:
    mllm = model_of(name)
    numbers = backbone_numbers(mllm.model)
    add_lora(mllm, LoraConfig(rank=3), seed=0)
    trained = sum(p.numel() for p in mllm.model.parameters() if p.requires_grad)
    assert trained == costs.lora_parameters(numbers, 3, len(mllm.vocabulary.ids))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_forward_pass_with_lora_keeps_one_table_with_the_rows_in_it(bf16: bool) -> None:
    mllm = model_of("qwen2_5_vl")
    table = mllm.model.lm_head.weight.numel()
    add_lora(mllm, LoraConfig(rank=3), seed=0)
    batch = collate(mllm, [encode_conversation(mllm, TURNS[:1], [FRAMES[0]])])
    own = {parameter.untyped_storage().data_ptr() for parameter in mllm.model.parameters()}
    kept: list[torch.Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        mllm.model.train()(**batch)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    found = [
        size for place, size in sizes.items() if place not in own and size in (2 * table, 4 * table)
    ]
    assert found == [(2 if bf16 else 4) * table]


def test_the_7b_model_with_lora_fits_one_gpu_and_is_never_split() -> None:
    given = ("sft.lora={}", "rl.lora={}", "hardware.dtype=bfloat16", "arms=[roboalign, extra-sft]")
    recipe = load_recipe(PAPER, given)
    text = described(recipe, "1xH100")
    assert text.count("fits into 73.6 GB") == 4 and "Fix" not in text
    sft, again, rl = plan_costs(recipe, GPUS["H100"], 1, Assumptions())[1][:3]
    b = backbone_numbers(meta_model(preset_config("qwen2.5-vl-7b"))).grown(2050)
    trained = costs.lora_parameters(b, 64, 2050)
    assert trained == 176_175_104
    for stage in (sft, again, rl):
        memory = stage.memory(stage.checkpointing, stage.micro, 1)
        assert memory.weights == 2 * b.parameters + 4 * trained and memory.optimizer == 8 * trained
        assert memory.reference == 0 and stage.disk["checkpoints"] == 3 * 12 * trained
        assert stage.disk["model"] == 2 * b.parameters
    whole = plan_costs(load_recipe(PAPER), GPUS["H100"], 1, Assumptions())[1][0]
    assert 1.9 * sft.flops < 1.5 * whole.flops < 2.1 * sft.flops  # with checkpointing 3 passes of 4
    small = find_fix(sft, 10e9, 8)
    assert small.memory is None and small.changes[0].startswith("LoRA is not sharded")


def test_numbers_of_the_7b_model() -> None:
    b = backbone_numbers(meta_model(preset_config("qwen2.5-vl-7b")))
    assert b.parameters == MODEL_PRESETS["qwen2.5-vl-7b"].published
    assert (b.layers, b.width, b.query, b.key_value, b.mlp) == (28, 3584, 3584, 512, 18944)
    assert b.table == 152064 * 3584 and not b.tied
    # queries, keys and values with biases, output, three of the feed-forward, two norms; the norm at the end
    layer = 3584 * (3584 + 2 * 512) + 3584 + 2 * 512 + 3584 * 3584 + 3 * 3584 * 18944 + 2 * 3584
    assert b.body == 28 * layer + 3584


def test_the_papers_run_needs_sharding_and_the_plan_says_so() -> None:
    text = described(load_recipe(PAPER), "8xH100")
    sft = text.split("\n\n")[1]
    assert "DOES NOT FIT into 73.6 GB" in sft
    # At the start: the whole model beside its part.
    assert "Fix: shard weights, gradients and optimizer over 8 GPUs (FSDP)\n  then 37.4" in sft
    assert "AdamW 61 GB" in sft  # 8 bytes x 7.63 G trained parameters


def test_more_gpus_than_there_are_are_named() -> None:
    assert "1 more than there are" in described(load_recipe(PAPER), "1xH100")


def test_every_mending_fits() -> None:
    for gpus in ("1xA6000", "2xA100", "8xH100", "4xH200"):
        gpu, count = parse_gpus(gpus)
        usable = 0.92 * gpu.memory
        for stage in plan_costs(load_recipe(PAPER), gpu, count, Assumptions())[1]:
            fix = find_fix(stage, usable, count)
            assert fix.memory is None or fix.memory.total <= usable
            assert fix.changes or stage.memory(stage.checkpointing, stage.micro, 1).total <= usable


def test_checkpointing_is_advised_where_it_is_enough() -> None:
    recipe = load_recipe(PAPER, ("sft.gradient_checkpointing=false", "sft.micro_batch_size=16"))
    stage = plan_costs(recipe, GPUS["H200"], 8, Assumptions())[1][0]
    bare, saved = (stage.memory(checkpointing, 16, 1).total for checkpointing in (False, True))
    between = find_fix(stage, (bare + saved) / 2, 8)
    assert between.changes == ("--set sft.gradient_checkpointing=true",)


def test_a_batch_that_does_not_divide_is_named_with_its_setting() -> None:
    text = described(load_recipe(RECIPES / "quickstart.yaml"), "8xH100")
    assert (
        "sft.batch_size 16 DOES NOT DIVIDE over 8 GPUs x 16\n  Fix: --set sft.micro_batch_size=2"
        in text
    )
    assert (
        "rl.prompts_per_update 16 DOES NOT DIVIDE over 8 GPUs x 16\n  Fix: --set rl.micro_batch_size=2"
        in text
    )
    alone = described(load_recipe(RECIPES / "quickstart.yaml"), "1xH100")
    assert "Fix" not in alone and alone.count("fits into 73.6 GB") == 4  # sft, extra-sft, rl, head


def test_extra_sft_is_split_as_sft_is() -> None:
    changes = (
        "arms=[extra-sft]",
        "rl.replay_weight=0.5",
        "rl.replay_batch=8",
        "sft.batch_size=12",
        "sft.micro_batch_size=6",
        "rl.prompts_per_rollout=16",
    )
    even, odd = (
        load_recipe(RECIPES / "quickstart.yaml", (*changes, f"rl.prompts_per_update={n}"))
        for n in (16, 2)
    )
    stage = plan_costs(even, GPUS["H100"], 2, Assumptions())[1][1]
    assert (stage.names, stage.gpus, stage.batch, stage.micro) == (("extra-sft",), 2, 24, 6)
    stage = plan_costs(odd, GPUS["H100"], 4, Assumptions())[1][1]
    assert find_fix(stage, GPUS["H100"].memory, 4).changes == (
        "--set rl.prompts_per_update=4",
    )  # 4 + 8 divide
    assert "rl.prompts_per_update 2 + 8 replayed DOES NOT DIVIDE over 4 GPUs x 3" in described(
        odd, "4xH100"
    )


def test_a_shorter_answer_is_advised_where_the_rollout_is_what_is_too_large() -> None:
    recipe = load_recipe(RECIPES / "paper" / "qwen3_vl_8b.yaml")
    assert "Fix: --set rl.max_new_tokens=" in described(recipe, "4xH100")


def test_stages_are_counted_by_arms_and_seeds() -> None:
    recipe = load_recipe(PAPER, ("seeds=[0, 1]", "arms=[base, language-sft, roboalign, extra-sft]"))
    stages = plan_costs(recipe, GPUS["H200"], 8, Assumptions())[1]
    assert [(stage.names, stage.runs) for stage in stages] == [
        (("language-sft", "sft"), 4),
        (("extra-sft",), 2),
        (("rl",), 2),
        (("head",), 8),
    ]


def test_a_reasoning_that_the_head_reads_costs_tokens_disk_and_time() -> None:
    def head(*changes: str) -> StageCost:
        return plan_costs(load_recipe(PAPER, changes), GPUS["H200"], 1, Assumptions())[1][-1]

    direct, think = head(), head("backbone.reading=think")
    short, long = (
        head("backbone.reading=reasoned", f"backbone.max_reasoning_tokens={n}") for n in (50, 128)
    )
    assert (think.tokens, think.seconds) == (direct.tokens, direct.seconds)
    frames = (short.tokens - direct.tokens) / 50
    # No more tokens than a reply is assumed to have: 120.
    assert long.tokens - direct.tokens == pytest.approx(120 * frames)
    each = direct.disk["features"] / direct.tokens
    assert long.disk["features"] == pytest.approx(each * long.tokens)
    assert direct.seconds < short.seconds < long.seconds


def test_the_head_shares_its_batch_and_keeps_what_the_recipe_says() -> None:
    def head(gpus: int, *changes: str) -> StageCost:
        return plan_costs(load_recipe(PAPER, changes), GPUS["H200"], gpus, Assumptions())[1][-1]

    one, eight = head(1), head(8)
    assert (one.gpus, one.micro, eight.gpus, eight.micro) == (1, 32, 8, 4)
    assert eight.seconds == pytest.approx(one.seconds / 8) and eight.flops == one.flops
    small, copies = (
        head(1, "backbone.layer_dtype=float8"),
        head(1, "head_training.features.variants=4"),
    )
    assert small.disk["features"] == pytest.approx(one.disk["features"] * 3585 / (2 * 3584))
    assert copies.disk["features"] == 4 * one.disk["features"]
    averaged, parameters = head(1, "head_training.ema=0.99"), one.disk["head"] / 4
    assert averaged.disk["checkpoint"] - one.disk["checkpoint"] == pytest.approx(4 * parameters)
    memory = [stage.memory(False, 32, 1).total for stage in (one, averaged)]
    assert memory[1] - memory[0] == pytest.approx(4 * parameters)
    uneven = described(load_recipe(PAPER, ("head_training.batch_size=30",)), "8xH100")
    assert "head_training.batch_size 30 DOES NOT DIVIDE" not in uneven
    too_few = described(load_recipe(PAPER, ("head_training.batch_size=6",)), "8xH100")
    assert "head_training.batch_size 6 DOES NOT DIVIDE over 8 GPUs x 1" in too_few
    few = head(8, "head_training.batch_size=6")
    assert find_fix(few, GPUS["H200"].memory, 8).changes == ("--set head_training.batch_size=8",)
    assert find_fix(one, one.memory(False, 1, 1).total, 1).changes == (
        "--set head_training.batch_size=1",
    )


def test_the_papers_counts() -> None:
    """2.28M samples of the paper's size take about its 30 hours on 8 H200, and RL its 25 rollouts."""
    changes = (
        "mix.conversations=2280000",
        "mix.min_turns=1",
        "mix.max_turns=1",
        "mix.action_share=0.18",
    )
    sft, rl, _ = plan_costs(
        load_recipe(PAPER, changes), GPUS["H200"], 8, Assumptions(image_tokens=1000)
    )[1]
    assert 10 < sft.seconds / 3600 < 40
    assert rl.work == "25 rollouts of 512 prompts x 5 answers"


def test_rl_on_a_split_model_gathers_the_policy_to_sample_and_splits_the_reference() -> None:
    recipe = load_recipe(PAPER)
    stage = plan_costs(recipe, GPUS["H100"], 8, Assumptions())[1][1]
    whole, split = (stage.memory(True, 1, share) for share in (1, 8))
    parameters = whole.weights / 4
    assert (whole.reference, whole.sampler) == (4 * parameters, 0)
    assert (split.reference, split.sampler) == (2 * parameters / 8, 2 * parameters)  # bfloat16
    drawn = 255 * (152064 + 2050) * 28  # 51 prompts x 5 answers; the rest is keys and values
    assert split.cache - drawn == (whole.cache - drawn) / 2 and split.casts == 0
    held = split.weights + split.optimizer + split.gathered + split.reference
    assert split.total == held + split.cache + split.sampler
    text = described(recipe, "8xH100").split("\n\n")[2]
    assert "Fix: shard weights, gradients and optimizer over 8 GPUs (FSDP)\n  then" in text
    assert "policy gathered to sample 16.6 GB" in text


def test_a_server_takes_the_sampling_off_the_trainer() -> None:
    server = {"vllm": {"url": "http://a:1", "weights": "/a"}}
    recipe = load_recipe(PAPER)
    served = recipe.model_copy(
        update={"rl": type(recipe.rl).model_validate({**recipe.rl.model_dump(), **server})}
    )
    own, other = (plan_costs(one, GPUS["H100"], 8, Assumptions())[1][1] for one in (recipe, served))
    assert other.memory(True, 1, 8).cache == 0 < own.memory(True, 1, 8).cache
    assert (
        other.memory(True, 1, 8).sampler == own.memory(True, 1, 8).sampler
    )  # what the server is given
    assert (
        other.flops == own.flops and 0 < other.seconds < own.seconds
    )  # no decoding, but log-probabilities
    assert (
        "sampled by a server whose GPUs are not counted" in other.work and "server" not in own.work
    )


def with_vllm(gpus: int = 8, **vllm: object) -> StageCost:
    recipe = load_recipe(PAPER)
    rl = type(recipe.rl).model_validate(
        {**recipe.rl.model_dump(), "vllm": {"weights": "/a", **vllm}}
    )
    return plan_costs(recipe.model_copy(update={"rl": rl}), GPUS["H100"], gpus, Assumptions())[1][1]


def test_a_server_on_the_same_gpus_takes_its_share_in_the_rollout_and_next_to_nothing_in_the_update() -> (
    None
):
    """By hand: 0.4 of 80 GB beside what the trainer holds, against 2 GB beside what an update adds."""
    away, here, awake = (
        with_vllm(**more)
        for more in ({"url": "http://a:1"}, {"serve": "v"}, {"serve": "v", "sleep": False})
    )
    there, slept, never = (stage.memory(True, 1, 8) for stage in (away, here, awake))
    held = there.weights + there.optimizer + there.gathered + there.reference
    assert slept.server == 32e9 and slept.asleep == 2e9 and slept.cache == 0
    assert slept.total == pytest.approx(held + 32e9)  # 21.9 GB, an update adds less than 30
    assert never.total == pytest.approx(max(there.rollout, there.update) + 32e9)
    assert with_vllm(serve="v", memory=0.3).memory(True, 1, 8).total == pytest.approx(held + 24e9)
    assert "sampled by vLLM on the same GPUs (16.6 GB of weights)" in here.work
    # Its time counts: 64 prompts of a GPU at a time, 5 answers each, read weights and cache at every step of 512.
    assert here.seconds > away.seconds and here.flops > away.flops
    assert with_vllm(serve="v", concurrency=8).seconds > here.seconds
    assert with_vllm(serve="v", options=["--dtype=float32"], memory=0.6).seconds > here.seconds


def test_a_share_that_is_too_large_is_cut_and_one_that_is_too_small_refused() -> None:
    stage = with_vllm(serve="v", memory=0.85)
    fix = find_fix(stage, 0.92 * 80e9, 8)
    assert fix.changes == (
        "--set rl.vllm.memory=0.65",
        "shard weights, gradients and optimizer over 8 GPUs (FSDP)",
    )
    assert fix.memory is not None and fix.memory.server == pytest.approx(52e9)
    with pytest.raises(
        RoboAlignError, match=r"rl.vllm.memory: 0.2 of H100 is 16 GB, .* weights are 16.6 GB"
    ):
        with_vllm(serve="v", memory=0.2)


def test_money_and_assumptions_are_printed() -> None:
    text = described(load_recipe(PAPER), "8xH200", price=2.0)
    assert "at 2 an hour" in text
    assert all(name in text for name in Assumptions.model_fields)
    assert assumptions(["utilisation=0.5", "action_dim=4"]) == Assumptions(
        utilisation=0.5, action_dim=4
    )
    for wrong in ("utilisation=2", "speed=1", "action_dim"):
        with pytest.raises(RoboAlignError, match="--assume"):
            assumptions([wrong])


def test_a_backbone_that_is_neither_there_nor_known_is_refused() -> None:
    with pytest.raises(RoboAlignError, match=r"Qwen/Qwen2\.5-VL-7B-Instruct"):
        described(load_recipe(PAPER, ("backbone.source=/models/none",)), "H100")
    with pytest.raises(RoboAlignError, match=r"text layers 1\.\.28"):
        described(load_recipe(PAPER, ("backbone.layer=29",)), "H100")


def test_units() -> None:
    assert (size(1.5e9), quantity(8.29e9), size(12.0)) == ("1.5 GB", "8.29 G", "12 B")
    assert [duration(s) for s in (0.5, 90, 5400, 3 * 86400)] == [
        "0.5 s",
        "1.5 min",
        "1.5 h",
        "3 days",
    ]
    assert Memory().total == 0


def test_hidden_states_beyond_the_limit_cost_steps_not_disk() -> None:
    def head(*changes: str) -> StageCost:
        return plan_costs(load_recipe(PAPER, changes), GPUS["H200"], 1, Assumptions())[1][-1]

    steps = ("head_training.steps=2000", "head_training.eval_every=1000")
    kept, asked = head(*steps), head(*steps, "head_training.features.most_gb=0.5")
    assert kept.disk["features"] > 0.5e9 and asked.disk["features"] == 0
    training = load_recipe(PAPER, steps).head_training
    encoded = 2000 * training.batch_size + 2 * training.eval_frames
    assert asked.tokens / kept.tokens == pytest.approx(encoded / _stored_frames(kept))
    assert "none are stored" in asked.work and "none are stored" not in kept.work


def _stored_frames(stage: StageCost) -> float:
    return float(stage.work.split(" frames")[0].replace(",", ""))
