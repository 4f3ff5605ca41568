"""A run whose SFT and RL learn from a folder of `roboalign data mix`."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from stage_run import SETTINGS, do, recipe, write_episodes

from roboalign.actions.vocabulary import extend_tokenizer
from roboalign.align.budget import token_counts
from roboalign.cli.data_mix import mix_data
from roboalign.conversations.conversation import read_conversations
from roboalign.conversations.stored import StoredConversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, write_json
from roboalign.mllm.load import load_mllm
from roboalign.plan.arithmetic import parse_gpus
from roboalign.plan.costs import plan_costs
from roboalign.plan.model import Assumptions
from roboalign.plan.stage_cost import StageCost
from roboalign.plan.stored_lengths import SAMPLE, with_stored
from roboalign.run.folder import mixture_folder, run_action_tokens
from roboalign.run.graph import plan_stages
from roboalign.run.recipe import Recipe


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 action samples of synthetic episodes, 4 of them for RL, with tokens of their own."""
    folder = tmp_path_factory.mktemp("mixture")
    write_episodes(folder / "robot", range(6))
    source = {
        "name": "acts",
        "robot": str(folder / "robot"),
        "space": "metaworld",
        "camera": "workspace",
        "count": 60,
    }
    settings = {
        "name": "own",
        "sources": [source],
        "heldout": {"share": 0.2},
        "rl": {"source": "acts", "count": 4, "at_most": 0.1},
        "tokenizer": {"fit": True, "horizon": 3, "scale": 2, "vocab_size": 64},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(settings))
    mix_data(str(folder / "own.yaml"), str(folder / "made"), workers=1)
    return folder / "made"


def given(mixture: Path, run_dir: Path, **changes: object) -> Recipe:
    """A recipe that starts from the run's own pretrained model, without action tokens."""
    backbone = {"source": str(run_dir / "base" / "pretrain" / "model"), "layer": 1}
    return recipe(mixture=str(mixture), backbone=backbone, **changes)


def refine_on(mixture: Path, settings: Recipe, run_dir: Path) -> None:
    stages = {stage.name: stage for stage in plan_stages(settings)}
    for name in ("mix", "seed-0/rl"):
        do(stages, run_dir, name, settings)


def test_sft_and_rl_learn_from_it_with_its_tokens(
    mixture: Path, run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(RoboAlignError, match=r"no answers in words to replay.*rl\.replay: all"):
        refine_on(mixture, given(mixture, run_dir), tmp_path / "words")
    settings = given(mixture, run_dir, rl={**SETTINGS["rl"], "replay": "all", "max_new_tokens": 24})
    stages = {stage.name: stage for stage in plan_stages(settings)}
    write_episodes(tmp_path / "collect" / "downstream", range(10, 12))
    rows = {
        name: do(stages, tmp_path, name, settings)
        for name in ("tokenizer", "mix", "base", "seed-0/sft", "seed-0/rl", "seed-0/extra-sft")
    }
    assert run_action_tokens(tmp_path).fast.horizon == 3 != SETTINGS["tokenizer"]["horizon"]
    assert rows["tokenizer"]["vocab_size"] == rows["base"]["fast_tokens"]
    assert mixture_folder(tmp_path).resolve() == mixture.resolve()
    assert rows["mix"]["conversations"] == 60 and rows["mix"]["rl_samples"] == 4
    assert rows["mix"]["rl_share"] == pytest.approx(4 / 60)
    assert rows["seed-0/rl"]["unique_prompts"] == len(read_conversations(mixture, "rl")) == 4
    trained = load_mllm(tmp_path / "seed-0" / "rl" / "model")
    assert (
        trained.vocabulary is not None
        and len(trained.vocabulary.fast_ids) == rows["base"]["fast_tokens"]
    )


def test_the_key_is_of_what_it_holds_not_of_where_it_lies(
    mixture: Path, run_dir: Path, tmp_path: Path
) -> None:
    def settings_of(folder: Path) -> dict[str, object]:
        return {stage.name: stage.settings for stage in plan_stages(given(folder, run_dir))}

    shutil.copytree(mixture, tmp_path / "moved")
    before, after = settings_of(mixture), settings_of(tmp_path / "moved")
    assert before == after
    manifest = tmp_path / "moved" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"own"', '"other"'))
    changed = settings_of(tmp_path / "moved")
    assert {name for name in before if before[name] != changed[name]} == {"tokenizer", "mix"}


def test_a_damaged_or_incomplete_mixture_is_named(
    mixture: Path, run_dir: Path, tmp_path: Path
) -> None:
    def run_mix(folder: Path) -> None:
        settings = given(folder, run_dir)
        do(
            {stage.name: stage for stage in plan_stages(settings)},
            tmp_path / "run",
            "mix",
            settings,
        )

    with pytest.raises(RoboAlignError, match=r"no manifest\.json.*roboalign data mix"):
        plan_stages(given(tmp_path / "nowhere", run_dir))
    damaged = tmp_path / "damaged"
    shutil.copytree(mixture, damaged)
    shard = next(damaged.glob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RoboAlignError, match=f"{shard.name}.*build the mixture again"):
        run_mix(damaged)
    bare = tmp_path / "bare"
    shutil.copytree(mixture, bare)
    shutil.rmtree(bare / "tokenizer")
    settings = given(bare, run_dir)
    with pytest.raises(RoboAlignError, match="no action tokens"):
        do(
            {stage.name: stage for stage in plan_stages(settings)},
            tmp_path / "run",
            "tokenizer",
            settings,
        )


@pytest.mark.parametrize("name", ["stats.json", "fast/tokenizer.json"])
def test_action_tokens_that_the_manifest_does_not_list_are_refused(
    mixture: Path, run_dir: Path, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(mixture, other)
    file = other / "tokenizer" / name
    content = bytearray(file.read_bytes())
    place = content.index(b"1")
    content[place] = ord("2")  # still JSON
    file.write_bytes(content)
    settings = given(other, run_dir)
    stages = {stage.name: stage for stage in plan_stages(settings)}
    with pytest.raises(RoboAlignError, match=r"tokenizer: it is not the folder.*data mix"):
        do(stages, tmp_path / "run", "tokenizer", settings)
    assert not (tmp_path / "run" / "tokenizer" / "stats.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"source": "train"}}, "learns to see from demonstrations"),
        ({"arms": ["sft", "ecot"], "backbone": {"source": "builtin"}}, "ecot.*make their data"),
    ],
)
def test_what_needs_the_simulator_is_refused_beside_it(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"name": "x", "mixture": "made", **changes})


def test_a_mixture_of_another_prompt_style_is_refused_before_the_start(
    mixture: Path, run_dir: Path
) -> None:
    with pytest.raises(RoboAlignError) as error:
        plan_stages(given(mixture, run_dir, prompts="paper"))
    assert error.value.problem == "the mixture has prompts of the style `labelled`, not `paper`"
    assert error.value.where == f"mixture: {mixture}"


def test_the_plan_counts_the_stored_conversations(
    mixture: Path, run_dir: Path, tmp_path: Path
) -> None:
    settings = given(mixture, run_dir)
    mllm = load_mllm(Path(settings.backbone.source))
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, run_action_tokens(mixture).fast.vocab_size)
    stored = StoredConversations(mixture, "train")
    tokens = token_counts(mllm, stored)
    images = [len(one.images) for one in stored]
    assumed = with_stored(Assumptions(answer_tokens=7), settings)
    assert assumed.answer_tokens == 7
    assert assumed.conversations == len(stored) <= SAMPLE
    assert assumed.conversation_tokens == pytest.approx(tokens.mean())
    assert assumed.longest_tokens == tokens.max()
    assert assumed.conversation_images == pytest.approx(np.mean(images))
    said = with_stored(Assumptions(conversation_tokens=11), settings)
    assert (said.conversation_tokens, said.longest_tokens) == (11, tokens.max())

    # With `model:`, the mixture stores the lengths of all samples, and none is counted again.
    shutil.copytree(mixture, tmp_path / "counted")
    shards = sorted((tmp_path / "counted").glob("train*.parquet"))
    for shard in shards:
        rows = pq.ParquetFile(shard).metadata.num_rows
        lengths = np.arange(10, 10 + rows, dtype=np.uint32)
        np.save(shard.with_name(f"{shard.stem}.lengths.npy"), lengths)
    counted = given(tmp_path / "counted", run_dir)
    # They are of another model, or of nobody knows which: counted again.
    assert with_stored(Assumptions(), counted).longest_tokens == tokens.max()
    manifest = tmp_path / "counted" / "manifest.json"
    said = read_json(manifest)
    said["settings"]["model"] = counted.backbone.source
    write_json(manifest, said)
    assumed = with_stored(Assumptions(), counted)
    assert (
        assumed.longest_tokens == 10 + max(pq.ParquetFile(s).metadata.num_rows for s in shards) - 1
    )
    shards[0].with_name(f"{shards[0].stem}.lengths.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(RoboAlignError, match=r"lengths of a shard cannot be read"):
        with_stored(Assumptions(), counted)


def test_a_budget_of_tokens_is_what_the_plan_counts(mixture: Path, run_dir: Path) -> None:
    assumed = Assumptions(conversations=1000, conversation_tokens=100, longest_tokens=300)
    gpu, count = parse_gpus("1xH100")

    def sft_of(**changes: object) -> StageCost:
        recipe = given(mixture, run_dir, sft={**SETTINGS["sft"], "max_steps": None, **changes})
        return plan_costs(recipe, gpu, count, assumed)[1][0]

    four, packed = sft_of(micro_batch_size=4), sft_of(tokens_per_micro_batch=1200)
    assert (four.tokens, packed.tokens) == (100_000, 100_000)
    # Four conversations are padded to the longest: 1,200 tokens.
    assert packed.memory(False, 1, 1) == four.memory(False, 4, 1)
    assert packed.memory(False, 1, 1).total > four.memory(False, 1, 1).total
    assert packed.smaller is not None
    change, least = packed.smaller
    assert change == "--set sft.tokens_per_micro_batch=300"
    assert least.memory(False, 1, 1) == four.memory(False, 1, 1)
