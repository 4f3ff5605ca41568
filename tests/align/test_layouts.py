"""One mixture of nine layouts (no image, one, several; JPEG, PNG, WebP; 32 to 4,000 pixels) through `mix`, SFT, GRPO,
evaluation, hidden states and a head, on small random models of four classes; two processes train as one."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file
from synthetic_episodes import make_episode
from two_ranks import two_ranks

from roboalign.actions.normalize import ActionStats
from roboalign.align import budget
from roboalign.align.budget import token_counts
from roboalign.align.dataset import Conversations, naming
from roboalign.align.distill import as_prompt
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.rollout import encoded_prompt
from roboalign.align.grpo.train import train_grpo
from roboalign.align.sft import SftConfig, train_sft
from roboalign.conversations.conversation import Conversation, read_conversations
from roboalign.conversations.stored import StoredConversations
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json
from roboalign.evaluate import tokens
from roboalign.evaluate.priors import language_priors
from roboalign.mixture.builder import build
from roboalign.mixture.config import MixtureConfig
from roboalign.mllm.hidden import hidden_states
from roboalign.mllm.load import load_mllm
from roboalign.mllm.tiny_classes import build_class
from roboalign.vla.features import View
from roboalign.vla.head import HeadConfig
from roboalign.vla.train import HeadTrainConfig, train_head

CLASSES = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision")
LABELLED = STYLES["labelled"]
CHOICE = "Which word is right?\nA. left\nB. right"
REPLY = "<think>It is {0}.</think><answer>{1}</answer>"
FILES = {
    "small.jpg": (32, 32),
    "wide.png": (1000, 640),
    "some.webp": (120, 90),
    "other.jpg": (200, 320),
    "large.jpg": (4000, 300),
    **{f"frame-{n}.jpg": (64, 48) for n in range(4)},
}
LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "one-jpeg": (["<image>\n" + CHOICE], ["small.jpg"]),
    "one-png": (["<image>\n" + CHOICE, CHOICE], ["wide.png"]),
    "behind": ([CHOICE + "\n<image>"], ["some.webp"]),
    "two": (["<image>\n<image>\n" + CHOICE], ["small.jpg", "other.jpg"]),
    "inside": (
        ["Is <image> like <image>, or <image>? " + CHOICE],
        ["some.webp", "wide.png", "small.jpg"],
    ),
    "none": ([CHOICE, CHOICE], []),
    "later": ([CHOICE, "<image>\n" + CHOICE], ["other.jpg"]),
    "large": (["<image>\n" + CHOICE], ["large.jpg"]),
    "frames": (["<image> " * 4 + "\n" + CHOICE], [f"frame-{n}.jpg" for n in range(4)]),
}
SFT = SftConfig(batch_size=6, micro_batch_size=3, max_steps=3, learning_rate=1e-3)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for seed, (name, size) in enumerate(FILES.items()):
        noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    records = []
    for number in range(2):
        for layout, (questions, images) in LAYOUTS.items():
            word = ("left", "right")[number]
            turns = []
            for question in questions:
                asked = question.replace("right?", f"right ({layout}, {number})?")
                answer = REPLY.format(word, "AB"[number])
                turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            records.append({"id": f"{layout}-{number}", "image": images, "conversations": turns})
    (folder / "qa.json").write_text(json.dumps(records))
    source = {
        "name": "qa",
        "qa": str(folder / "qa.json"),
        "layout": "llava",
        "kind": "reasoning",
        "count": len(records),
        "answers": {"kinds": ["choice"]},
    }
    config = MixtureConfig.model_validate({"name": "layouts", "sources": [source]})
    build(config, folder / "mixture")
    return folder / "mixture"


def test_the_mixture_has_every_layout_with_its_files_unchanged(mixture: Path) -> None:
    found = {c.id.removeprefix("qa/"): c for c in read_conversations(mixture, "train")}
    assert found.keys() == {f"{layout}-{number}" for layout in LAYOUTS for number in range(2)}
    for layout, (questions, images) in LAYOUTS.items():
        one = found[f"{layout}-0"]
        assert len(one.turns) == len(questions)
        assert list(one.images) == [(mixture.parent / name).read_bytes() for name in images]
        assert {Image.open(io.BytesIO(data)).format for data in one.images} <= {
            "JPEG",
            "PNG",
            "WEBP",
        }
    stored = sum(path.stat().st_size for path in mixture.glob("train-*.parquet"))
    sources = sum(
        (mixture.parent / name).stat().st_size for _, names in LAYOUTS.values() for name in names
    )
    assert stored <= 1.05 * 2 * sources + 20_000  # two records of each layout; the texts are short


@pytest.fixture(scope="module", params=CLASSES)
def run(request: pytest.FixtureRequest, mixture: Path, tmp_path_factory: pytest.TempPathFactory):
    """A model after SFT on the mixture, its folder and the conversations."""
    data = StoredConversations(mixture, "train")
    texts = [text for c in data for turn in c.turns for text in (turn.question, turn.answer)]
    mllm = build_class(request.param, texts)
    folder = tmp_path_factory.mktemp(request.param)
    before = mllm.model.get_input_embeddings().weight.detach().clone()
    ledger = train_sft(mllm, data, SFT, folder)
    assert ledger["samples"] == 18
    assert not torch.equal(before, mllm.model.get_input_embeddings().weight)
    return mllm, folder, list(data)


def reasoned(data: list[Conversation]) -> list[Conversation]:
    """The last turn of one conversation of each layout as a prompt: it sees all images."""
    return [as_prompt(c, len(c.turns) - 1, LABELLED) for c in data if c.id.endswith("-0")]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_grpo(run, tmp_path: Path, checkpointing: bool) -> None:
    """The trainer refuses where its log-probabilities are not the sampler's, so images stay with their answers."""
    mllm, _, data = run
    asked = reasoned(data)
    assert sorted(len(c.images) for c in asked) == [0, 1, 1, 1, 1, 1, 2, 3, 4]
    config = RlConfig(
        reward="answer",
        prompts_per_rollout=9,
        prompts_per_update=9,
        micro_batch_size=3,
        samples=2,
        updates=1,
        max_new_tokens=3,
        gradient_checkpointing=checkpointing,
    )
    train_grpo(mllm, None, asked, config, tmp_path)
    (record,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert record["answers"] == 18 and record["ratio"] == pytest.approx(1, abs=1e-3)


def test_evaluation(run) -> None:
    mllm, _, data = run
    questions = reasoned(data)
    asker = tokens.Asker(mllm, tokens.TokenEvalConfig(max_new_tokens=3, batch_size=4))
    records = tokens.ask_questions(asker, questions, language_priors(data, LABELLED), 32)
    assert {record["probe"] for record in records} >= {"vqa"} and len(records) >= 9
    alone = asker("alone", [encoded_prompt(mllm, questions[4])])
    assert records[4]["text"] == asker.text(alone[0])


def test_hidden_states(run) -> None:
    mllm, _, data = run
    encoded = [encoded_prompt(mllm, c) for c in reasoned(data)]
    states, mask = hidden_states(mllm, encoded, 2, batch_size=4)
    assert torch.isfinite(states).all()
    for row in (0, 4, 5):
        alone, real = hidden_states(mllm, encoded[row : row + 1], 2)
        torch.testing.assert_close(states[row][mask[row]], alone[0][real[0]], atol=5e-5, rtol=1e-3)


def head(backbone: Path, folder: Path) -> None:
    """Four updates on three short episodes; 3 frames do not divide over two processes."""
    episodes = [make_episode(number, 4 + number, "reach left") for number in range(3)]
    stats = ActionStats.fit(np.concatenate([episode.actions for episode in episodes]))
    small = HeadConfig(width=32, heads=2, layers=2, vlm_inner_width=32, vlm_heads=2)
    config = HeadTrainConfig(steps=4, batch_size=3, learning_rate=1e-3, eval_every=4)
    view, parts = View(layer=2, cameras=("front", "wrist")), (episodes[:2], episodes[2:])
    mllm = load_mllm(backbone)
    train_head(mllm, *parts, small, config, view, stats, folder, horizon=3)


def as_one_of_two(kind: str, texts: list[str], mixture: Path, backbone: Path, folder: Path) -> int:
    """SFT as in `run`, then the head on the model that `run` wrote."""
    torch.set_num_threads(1)
    data = StoredConversations(mixture, "train")
    train_sft(build_class(kind, texts), data, SFT, folder / "sft")
    assert dist.get_world_size() == 2
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "COUNTED", 5)
        patch.setattr(budget, "naming", lambda c: (seen.append(c.id), naming(c))[1])
        counts = token_counts(build_class(kind, texts), data)
    write_json(folder / f"counted-{dist.get_rank()}.json", {"counts": counts.tolist(), "ids": seen})
    head(backbone, folder / "head")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def test_a_head_and_two_processes(run, mixture: Path, tmp_path: Path) -> None:
    mllm, folder, data = run
    kind = mllm.model.config.model_type
    texts = [text for c in data for turn in c.turns for text in (turn.question, turn.answer)]
    arguments = kind, texts, mixture, folder / "model", tmp_path / "both"
    ended = two_ranks(as_one_of_two, *arguments, logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended
    head(folder / "model", tmp_path / "alone")
    one, two = (
        load_file(place / "model/model.safetensors") for place in (folder, tmp_path / "both/sft")
    )
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert one.keys() == two.keys() and apart < 1e-4, apart  # three updates of up to 1e-3 each
    counted = [read_json(tmp_path / "both" / f"counted-{n}.json") for n in (0, 1)]
    whole = token_counts(mllm, data).tolist()
    assert [row["counts"] for row in counted] == [whole, whole]
    assert counted[0]["ids"] + counted[1]["ids"] == [
        data[number].id
        for part in ((*range(5), *range(10, 15)), (*range(5, 10), 15, 16, 17))
        for number in part
    ]
    ours, theirs = (tmp_path / place for place in ("both/head", "alone"))
    records = [read_jsonl(place / "metrics.jsonl") for place in (ours, theirs)]
    assert [record["step"] for record in records[0]] == [record["step"] for record in records[1]]
    for mine, expected in zip(*records, strict=True):
        for name in ("train_loss", "heldout_loss", "heldout_l1"):
            assert mine[name] == pytest.approx(expected[name], rel=2e-3), name
    one, two = (load_file(place / "policy/head.safetensors") for place in (ours, theirs))
    # The keys' bias moves all scores alike: its gradient is rounding, of which Adam makes whole steps.
    names = [name for name in one if not name.endswith("key_value.bias")]
    apart = max(float((one[name] - two[name]).abs().max()) for name in names)
    assert one.keys() == two.keys() and apart < 2e-4, apart  # four steps of at most 1e-3 each


def test_conversations_over_the_token_budget_are_left_out_by_name(
    mixture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = StoredConversations(mixture, "train")
    mllm = build_class("qwen2_5_vl", [turn.question for c in data for turn in c.turns])
    counts = token_counts(mllm, data)
    whole = [Conversations(mllm, data)[number] for number in range(len(data))]
    assert counts.tolist() == [len(one.input_ids) for one in whole]
    most = int(np.median(counts))
    config = SftConfig(batch_size=2, micro_batch_size=2, max_steps=1, max_tokens=most)
    ledger = train_sft(mllm, data, config, tmp_path)
    named = (tmp_path / "too-long.txt").read_text().splitlines()
    assert named == [f"{count} {c.id}" for count, c in zip(counts, data) if count > most]
    assert ledger["too_long"] == len(named) > 0 and ledger["tokens"] <= 2 * most
    assert (
        f"{len(named)} of 18 conversations have more than {most} tokens" in capfd.readouterr().err
    )
    with pytest.raises(RoboAlignError, match="all 18 conversations have more than 3 tokens"):
        train_sft(mllm, data, config.model_copy(update={"max_tokens": 3}), tmp_path / "none")
