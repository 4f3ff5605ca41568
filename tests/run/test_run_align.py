"""The backbones that the arms compare: each differs from the others in one thing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_run import SETTINGS, context, recipe

from roboalign.align.lora import LoraConfig
from roboalign.align.sft import SftConfig
from roboalign.align.trained import TuneConfig
from roboalign.conversations.conversation import Conversation, read_conversations
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.files import read_json
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.run.arms import ARMS
from roboalign.run.folder import backbone_folder, mixture_folder
from roboalign.run.stage import Context
from roboalign.run.stages import align
from roboalign.run.stages.base import LANGUAGE

LABELLED = STYLES["labelled"]


@pytest.fixture
def control(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What extra-sft would train on: (the conversations, its settings) for an `rl` of the recipe."""

    def call(
        seed: int = 0, sft: dict[str, Any] = SETTINGS["sft"], **rl: Any
    ) -> tuple[list[Conversation], SftConfig]:
        given: list[Any] = []

        def train(
            mllm: Mllm,
            conversations: Sequence[Conversation],
            config: SftConfig,
            *rest: Any,
            label: str,
        ) -> Any:
            given.extend((list(conversations), config))

        monkeypatch.setattr(align, "train_sft", train)
        monkeypatch.setattr(Context, "load", lambda self, folder: given.append(folder))
        settings = recipe(sft=sft, rl={**recipe().rl.model_dump(), **rl})
        align.extra_sft(context(run_dir, f"seed-{seed}/extra-sft", settings))
        assert given[0] == run_dir / f"seed-{seed}" / "sft" / "model"  # it starts where RL starts
        return given[1], given[2]

    return call


def prompts_of_rl(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0, **rl: Any
) -> Counter[str]:
    """How often train_grpo answers each prompt, from the order that it hands to its trainer."""
    from roboalign.align.grpo import train as grpo

    class Stop(Exception):
        pass

    def build(*given: Any) -> None:
        prompts, order, updates = given[2], given[6], given[7]
        raise Stop([prompts[index].id for index in order], updates)

    settings = recipe(rl={**recipe().rl.model_dump(), **rl})
    monkeypatch.setattr(grpo, "build_grpo_trainer", build)
    monkeypatch.setattr(grpo, "check_prompts", lambda *arguments: None)
    monkeypatch.setattr(Context, "load", lambda self, folder: None)
    with pytest.raises(Stop) as stopped:
        align.rl(context(run_dir, f"seed-{seed}/rl", settings))
    ids, updates = stopped.value.args
    assert len(ids) == updates * settings.rl.prompts_per_update
    return Counter(ids)


@pytest.mark.parametrize(
    ("seed", "rl"),
    [
        (0, {}),
        (3, {}),
        (0, {"updates": 10}),
        (1, {"updates": None, "epochs": 3.0}),
        (
            0,
            {
                "updates": 1,
                "prompts_per_rollout": 3,
                "prompts_per_update": 3,
                "micro_batch_size": 3,
            },
        ),
    ],
)
def test_the_control_has_the_updates_and_the_prompts_of_rl(
    run_dir: Path, control: Any, monkeypatch: pytest.MonkeyPatch, seed: int, rl: dict[str, Any]
) -> None:
    conversations, config = control(seed, **rl)
    asked = prompts_of_rl(run_dir, monkeypatch, seed, **rl)
    imitated = Counter(
        one.id for one in conversations if one.turns[0].kind == "action" and one.target is not None
    )
    assert imitated == asked
    settings = recipe(rl={**recipe().rl.model_dump(), **rl}).rl
    assert config.max_steps * settings.prompts_per_update == sum(asked.values())
    assert (
        len(conversations) == config.max_steps * config.batch_size
    )  # one pass: each update is full
    assert config.batch_size == settings.prompts_per_update + settings.replay_batch
    assert config.micro_batch_size <= recipe().sft.micro_batch_size
    assert config.schedule == "constant" and config.warmup_ratio == 0 and config.seed == seed
    same = {name: getattr(settings, name) for name in TuneConfig.model_fields if name != "seed"}
    assert {name: getattr(config, name) for name in same} == same


def test_the_control_has_the_adapters_of_rl(control: Any) -> None:
    _, config = control(lora={"rank": 3, "alpha": 6}, sft={**SETTINGS["sft"], "lora": {"rank": 5}})
    assert config.lora == LoraConfig(rank=3, alpha=6)


def test_the_control_imitates_in_direct_mode_only(run_dir: Path, control: Any) -> None:
    conversations, _ = control(updates=4)
    recorded = {one.id: one for one in read_conversations(mixture_folder(run_dir), "rl")}
    actions = [one for one in conversations if one.id in recorded]
    assert actions
    for one in actions:
        (turn,), original = one.turns, recorded[one.id]
        assert (
            turn.mode == "direct"
            and LABELLED.requests[0] in turn.question
            and LABELLED.requests[1] not in turn.question
        )
        assert LABELLED.requests[1] in original.turns[0].question  # RL asks the same in think mode
        assert LABELLED.bare(turn.question) == LABELLED.bare(original.turns[0].question)
        block = "".join(f"<FAST_{token}>" for token in original.target)
        assert turn.answer == f"<think></think><answer><ACTION_START>{block}<ACTION_END></answer>"
        assert one.images == original.images


def test_the_controls_replay_is_language_only_and_can_be_off(control: Any) -> None:
    conversations, config = control(updates=4)
    replayed = [one for one in conversations if one.target is None]
    assert len(replayed) == 4 * 2
    assert {turn.kind for one in replayed for turn in one.turns} <= set(LANGUAGE)
    conversations, config = control(updates=4, replay_weight=0.0)
    assert len(conversations) == 4 * 2 and config.batch_size == 2


def test_replay_of_all_holds_direct_actions_in_rl_and_in_its_control(
    run_dir: Path, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, list[Conversation]] = {}
    monkeypatch.setattr(
        align, "train_grpo", lambda *arguments, **named: given.update(rl=named["replay"])
    )
    for name, kinds in (("language", set(LANGUAGE)), ("all", {*LANGUAGE, "action"})):
        align.rl(
            context(run_dir, "seed-0/rl", recipe(rl={**recipe().rl.model_dump(), "replay": name}))
        )
        assert {turn.kind for one in given["rl"] for turn in one.turns} == kinds
        conversations, _ = control(updates=8, replay=name, replay_batch=8)
        replayed = [one for one in conversations if one.target is None]  # an RL prompt has a target
        assert {turn.kind for one in replayed for turn in one.turns} == kinds
    assert all(
        turn.mode == "direct" for one in given["rl"] for turn in one.turns if turn.kind == "action"
    )


def test_the_control_trains(run_dir: Path) -> None:
    row = align.extra_sft(context(run_dir, "seed-0/extra-sft", recipe()))
    assert row["updates"] == 2 and row["samples"] == 2 * (2 + 2)
    before, after = (
        load_file(run_dir / "seed-0" / name / "model/model.safetensors")
        for name in ("sft", "extra-sft")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_control_has_sfts_micro_batch_and_the_same_update(run_dir: Path) -> None:
    """Four updates of 4, in one forward pass each and in four: apart by rounding alone."""
    rl = {**recipe().rl.model_dump(), "updates": 4}
    found = {}
    for micro in (4, 1):
        sft = recipe().sft.model_copy(update={"micro_batch_size": micro})
        stage = context(
            run_dir, f"seed-0/extra-sft-by-{micro}", recipe(sft=sft.model_dump(), rl=rl)
        )
        assert align.extra_sft(stage)["samples"] == 4 * 4
        found[micro] = load_file(stage.folder / "model" / "model.safetensors")
    start = load_file(run_dir / "seed-0" / "sft" / "model" / "model.safetensors")
    moved = max(float((found[4][name] - start[name]).abs().max()) for name in start)
    apart = max(float((found[4][name] - found[1][name]).abs().max()) for name in start)
    assert moved > 1e-4 and apart < 0.01 * moved, f"{apart} apart after moving by {moved}"


@pytest.mark.parametrize(("micro", "fits"), [(1, 1), (3, 2), (4, 4), (7, 4), (32, 4)])
def test_the_controls_micro_batch_divides_its_updates(control: Any, micro: int, fits: int) -> None:
    assert (
        control(sft={"max_steps": 2, "batch_size": micro, "micro_batch_size": micro})[
            1
        ].micro_batch_size
        == fits
    )


def test_sft_starts_from_the_base_under_the_stages_seed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(align, "train_sft", lambda *arguments, label: given.extend(arguments))
    align.sft(context(run_dir, "seed-5/sft", recipe()))
    mllm, conversations, config, folder = given
    assert mllm.folder == run_dir / "base" / "model" and folder == run_dir / "seed-5" / "sft"
    assert config == recipe().sft.model_copy(update={"seed": 5})
    assert {turn.kind for one in conversations for turn in one.turns} == {*LANGUAGE, "action"}
    assert read_json(run_dir / "seed-0" / "sft" / "stage.json")["updates"] == 2


def test_the_random_backbone_is_another_model_of_the_same_shape(run_dir: Path) -> None:
    row = align.random_backbone(context(run_dir, "seed-0/random", recipe()))
    align.random_backbone(context(run_dir, "seed-1/random", recipe()))
    base, fresh = (
        load_mllm(folder)
        for folder in (run_dir / "base" / "model", run_dir / "seed-0/random/model")
    )
    assert fresh.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert row["parameters"] == sum(p.numel() for p in base.model.parameters())
    weights = [dict(one.model.named_parameters()) for one in (base, fresh)]
    assert weights[0].keys() == weights[1].keys()
    matrices = [name for name, value in weights[0].items() if value.dim() >= 2]
    assert matrices and not any(
        torch.equal(weights[0][name], weights[1][name]) for name in matrices
    )
    other = dict(load_mllm(run_dir / "seed-1/random/model").model.named_parameters())
    assert not any(torch.equal(other[name], weights[1][name]) for name in matrices)


def test_each_arm_has_its_backbone(tmp_path: Path) -> None:
    folders = {
        arm: backbone_folder(tmp_path, 2, arm).relative_to(tmp_path).as_posix() for arm in ARMS
    }
    assert folders == {
        "base": "base/model",
        "sft": "seed-2/sft/model",
        "roboalign": "seed-2/rl/model",
        "blind": "seed-2/rl/model",
        "extra-sft": "seed-2/extra-sft/model",
        "roboalign-visited": "seed-2/rl-visited/model",
        "sft-visited": "seed-2/sft-visited/model",
        **{
            f"{arm}-tokens-{mode}": f"seed-2/{stage}/model"
            for arm, stage in (
                ("extra-sft", "extra-sft"),
                ("roboalign-visited", "rl-visited"),
                ("sft-visited", "sft-visited"),
            )
            for mode in ("direct", "think")
        },
        "random": "seed-2/random/model",
        "ecot": "seed-2/ecot/model",
        "language-sft": "seed-2/language-sft/model",
        "action-sft": "seed-2/action-sft/model",
        "language-rl": "seed-2/language-rl/model",
        "trajectory-rl": "seed-2/trajectory-rl/model",
        "base-online": "base/model",
        "sft-online": "seed-2/sft/model",
        "roboalign-online": "seed-2/rl/model",
        "extra-sft-online": "seed-2/extra-sft/model",
        **{
            f"{arm}-tokens-{mode}-online": f"seed-2/online/{arm}-tokens-{mode}-online/model"
            for arm in ("sft", "roboalign")
            for mode in ("direct", "think")
        },
        "sft-tokens-direct": "seed-2/sft/model",
        "sft-tokens-think": "seed-2/sft/model",
        "roboalign-tokens-direct": "seed-2/rl/model",
        "roboalign-tokens-think": "seed-2/rl/model",
    }
