"""A mixture from sources of every kind: what is in it, that it is accounted for, and that it can be built again."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data_episodes import make_episode
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mixing_sources import settings, shard_bytes, write_qa, write_robot

from roboalign.conversations import prompts
from roboalign.conversations.conversation import read_conversations
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.mixture.builder import build
from roboalign.mixture.config import load_mixture
from roboalign.mixture.tokens import load_tokens

LABELLED, PAPER = STYLES["labelled"], STYLES["paper"]

TOKENS = {"fit": True, "horizon": 6, "scale": 4.0, "vocab_size": 128}
RL = {"source": "acts", "count": 8, "at_most": 0.1}


@pytest.fixture(scope="module")
def mixed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions, 50 actions, 20 conversations; 8 of them for RL; a tenth of images and episodes held out."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    build(
        settings(*sources(made), tokenizer=TOKENS, rl=RL, heldout={"share": 0.15}, shard_size=25),
        out,
    )
    return out


def sources(made: Path) -> list[dict]:
    return [
        {"name": "qa", "qa": str(made / "qa/qa.json"), "kind": "embodied", "count": 40},
        {"name": "acts", "robot": str(made / "robot"), "count": 50},
        {"name": "talks", "conversations": str(made / "talks"), "count": 20},
    ]


def ids(folder: Path, source: str = "", split: str = "train") -> list[str]:
    return [c.id for c in read_conversations(folder, split) if c.id.startswith(source)]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_every_sample_is_accounted_for_and_counted(mixed: Path):
    told = manifest(mixed)
    train = read_conversations(mixed, "train")
    assert [len(ids(mixed, name)) for name in ("qa/", "acts/", "talks/")] == [40, 50, 20] and len(
        train
    ) == 110
    assert len({c.id for c in train}) == 110
    assert told["counts"]["train"]["source"] == {"acts": 50, "qa": 40, "talks": 20}
    assert told["counts"]["train"]["kind"] == {"action": 50, "embodied": 40, "reasoning": 20}
    assert {name: row["found"] for name, row in told["sources"].items()} == {
        "qa": 60,
        "acts": 80,
        "talks": 30,
    }
    for row in told["sources"].values():
        parts = (
            "kept",
            "heldout",
            "heldout_seen",
            "duplicates",
            "leaks",
            "refused",
            "faults",
            "not_drawn",
        )
        assert (
            row["found"] == sum(row[part] for part in parts) and row["short"] == row["repeats"] == 0
        )
    held = [name for name in ids(mixed, split="heldout") if not name.endswith("-think")]
    assert len(ids(mixed, split="rl")) == 8
    assert len(held) == sum(row["heldout"] for row in told["sources"].values())
    assert sorted(told["shards"]) == sorted(path.name for path in mixed.glob("*.parquet"))
    assert len(list(mixed.glob("train-*"))) == 5  # 110 in 25s
    assert not list(mixed.parent.glob(".*"))  # nothing is left of the work


def test_the_order_mixes_the_sources(mixed: Path):
    kinds = [c.id.split("/")[0] for c in read_conversations(mixed, "train")]
    changes = sum(a != b for a, b in pairwise(kinds))
    assert 45 < changes < 95  # a random order has 109 * (1 - .36**2 - .45**2 - .18**2) = 69 +- 5


def test_action_samples_decode_to_the_chunk_and_rl_asks_for_reasoning(mixed: Path):
    tokens = load_tokens(mixed / "tokenizer")
    stored = {
        f"acts/{e.episode_id}": e
        for e in (make_episode("puck-push", seed, 20) for seed in range(4))
    }
    rl = read_conversations(mixed, "rl")
    trained = {c.id: c for c in read_conversations(mixed, "train", ["action"])}
    assert {c.id for c in rl} <= set(trained)
    for c in rl:
        episode = stored[c.id.rsplit("#", 1)[0]]
        chunk = tokens.stats.normalize(episode.chunk(c.frame, 6))
        np.testing.assert_allclose(c.chunk, chunk, atol=1e-6)
        assert list(c.target) == tokens.fast.encode(chunk[None])[0]
        assert (
            c.turns[0].expected
            == trained[c.id].turns[0].expected
            == prompts.action_answer(c.target)
        )
        assert c.turns[0].question == LABELLED.action_question(episode.instruction, "think")
        assert c.direct_question == LABELLED.action_question(episode.instruction, "direct")
        assert trained[c.id].target is None and trained[c.id].turns[0].mode == "direct"
        assert c.images == trained[c.id].images
    told = manifest(mixed)["rl"]
    assert (mixed / told["ids"]).read_text().split("\n")[:-1] == [c.id for c in rl] and told[
        "share"
    ] == 8 / 110


def test_held_out_episodes_and_images_are_not_in_training(mixed: Path):
    held, train = read_conversations(mixed, "heldout"), read_conversations(mixed, "train")
    assert {c.id.split("/")[0] for c in held} >= {"qa"}
    assert not {c.episode_id for c in held} & {c.episode_id for c in train}
    assert not {c.images for c in held} & {c.images for c in train}


def test_questions_keep_their_image_file_as_it_is(mixed: Path, made: Path):
    for c in read_conversations(mixed, "train", ["embodied"]):
        number = c.id.removeprefix("qa/q")
        assert c.images[0] == (made / f"qa/{number}.jpg").read_bytes()
        assert c.turns[0].question == f'What is number {number}? Answer directly as "answer".'
        assert c.turns[0].answer == f"<think></think><answer>answer It is {number}.</answer>"


def test_the_manifest_rebuilds_the_same_bytes_elsewhere_with_two_processes(
    mixed: Path, made: Path, tmp_path: Path
):
    moved = Path(shutil.copytree(made, tmp_path / "moved"))
    at = {"qa": moved / "qa/qa.json", "acts": moved / "robot", "talks": moved / "talks"}
    config, expected = load_mixture(
        mixed / "manifest.json", {name: str(path) for name, path in at.items()}
    )
    build(config, tmp_path / "again", workers=2, expected=expected)
    assert shard_bytes(tmp_path / "again") == shard_bytes(mixed)
    for name in (
        "dropped.jsonl",
        "rl-ids.txt",
        "tokenizer/fast/tokenizer.json",
        "tokenizer/stats.json",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (mixed / name).read_bytes()


def test_a_source_that_changed_since_is_named(mixed: Path, made: Path, tmp_path: Path):
    moved = Path(shutil.copytree(made / "qa", tmp_path / "qa"))
    (moved / "qa.json").write_text(
        (moved / "qa.json").read_text().replace("number 7?", "number seven?")
    )
    config, expected = load_mixture(mixed / "manifest.json", {"qa": str(moved / "qa.json")})
    with pytest.raises(RoboAlignError, match=r"source file qa/qa.json differs"):
        build(config, tmp_path / "again", expected=expected)
    (moved / "qa.json").write_bytes((made / "qa/qa.json").read_bytes())
    (moved / f"{ids(mixed, 'qa/')[0].removeprefix('qa/q')}.jpg").write_bytes(
        (made / "qa/3.jpg").read_bytes()
    )
    with pytest.raises(
        RoboAlignError, match=r"the shard .* differs: this would be another mixture"
    ):
        build(config, tmp_path / "again", expected=expected)
    assert not (tmp_path / "again").exists()


@given(smaller=st.integers(1, 30), more=st.integers(0, 30), seed=st.integers(0, 3))
@hypothesis_settings(
    max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_a_larger_count_contains_the_smaller(
    made: Path, tmp_path: Path, smaller: int, more: int, seed: int
):
    def drawn(count: int) -> set[str]:
        out = tmp_path / f"{count}-{seed}"
        build(
            settings({"name": "qa", "qa": str(made / "qa/qa.json"), "count": count}, seed=seed), out
        )
        return set(ids(out))

    few, many = drawn(smaller), drawn(smaller + more)
    assert few <= many and (len(few), len(many)) == (smaller, smaller + more)


def test_other_seeds_draw_and_order_otherwise(made: Path, tmp_path: Path):
    for seed in (0, 1):
        build(
            settings({"name": "qa", "qa": str(made / "qa/qa.json"), "count": 30}, seed=seed),
            tmp_path / str(seed),
        )
    assert set(ids(tmp_path / "0")) != set(ids(tmp_path / "1"))


def test_fewer_samples_than_asked_is_an_error_or_a_repetition(made: Path, tmp_path: Path):
    source = {"name": "qa", "qa": str(made / "qa/qa.json"), "count": 150}
    with pytest.raises(
        RoboAlignError, match=r"150 samples are asked and it has 60.*lower its count to 60, or"
    ):
        build(settings(source), tmp_path / "out")
    told = build(settings({**source, "repeat": True}), tmp_path / "out")
    found = ids(tmp_path / "out")
    assert len(found) == len(set(found)) == 150
    assert sum("~2" in one for one in found) == 60 and sum("~3" in one for one in found) == 30
    assert (told["sources"]["qa"]["kept"], told["sources"]["qa"]["repeats"]) == (60, 90)


def test_a_folder_that_is_there_is_not_overwritten_and_a_finished_mixture_is_not_made_again(
    made: Path, tmp_path: Path
):
    config = settings({"name": "qa", "qa": str(made / "qa/qa.json"), "count": 5})
    first = build(config, tmp_path / "out")
    at = (tmp_path / "out/train-00000.parquet").stat().st_mtime_ns
    assert build(config, tmp_path / "out") == first
    assert (tmp_path / "out/train-00000.parquet").stat().st_mtime_ns == at
    with pytest.raises(RoboAlignError, match="there already"):
        build(config.model_copy(update={"seed": 1}), tmp_path / "out")


def test_robots_whose_actions_differ_are_refused(made: Path, tmp_path: Path):
    write_robot(tmp_path / "other", 2)
    both = [
        {"name": "a", "robot": str(made / "robot"), "count": 5, "space": "metaworld"},
        {"name": "b", "robot": str(tmp_path / "other"), "count": 5},
    ]
    with pytest.raises(RoboAlignError, match="source b: its actions are not those of the source a"):
        build(settings(*both, tokenizer=TOKENS), tmp_path / "out")


def test_a_tokenizer_that_is_there_is_used_with_its_statistics(
    mixed: Path, made: Path, tmp_path: Path
):
    source = {"name": "acts", "robot": str(made / "robot"), "count": 20}
    told = build(
        settings(source, tokenizer={"path": str(mixed / "tokenizer"), "horizon": 6}),
        tmp_path / "out",
    )
    assert (tmp_path / "out/tokenizer/stats.json").read_bytes() == (
        mixed / "tokenizer/stats.json"
    ).read_bytes()
    expected = {c.id: c.turns[0].expected for c in read_conversations(mixed, "train", ["action"])}
    both = [c for c in read_conversations(tmp_path / "out", "train") if c.id in expected]
    assert len(both) > 5 and all(c.turns[0].expected == expected[c.id] for c in both)
    assert told["tokenizer"]["vocab_size"] == manifest(mixed)["tokenizer"]["vocab_size"]


def test_the_weights_share_out_the_total(made: Path, tmp_path: Path):
    write_qa(tmp_path / "other", 40, first=200, suffix=".jsonl")
    weighted = [
        {"name": "a", "qa": str(made / "qa/qa.json"), "weight": 2.0},
        {"name": "b", "qa": str(tmp_path / "other/qa.jsonl"), "weight": 1.0},
        {"name": "talks", "conversations": str(made / "talks"), "count": 4},
    ]
    told = build(settings(*weighted, total=34), tmp_path / "out")
    assert told["counts"]["train"]["source"] == {"a": 20, "b": 10, "talks": 4}


def test_the_style_paper_keeps_questions_and_answers_as_they_are(made: Path, tmp_path: Path):
    qa, acts, _ = sources(made)
    out = tmp_path / "out"
    build(settings(qa, acts, tokenizer=TOKENS, rl=RL, prompts="paper"), out)
    assert manifest(out)["prompts"] == "paper"
    asked = read_conversations(out, "train", ["embodied"])
    assert len(asked) == 40
    for c in asked:
        number = c.id.removeprefix("qa/q")
        (turn,) = c.turns
        assert (turn.question, turn.answer) == (f"What is number {number}?", f"It is {number}.")
        assert turn.expected == turn.answer
    trained = {c.id: c.turns[0] for c in read_conversations(out, "train", ["action"])}
    for c in read_conversations(out, "rl"):
        direct, think = trained[c.id], c.turns[0]
        assert direct.answer == direct.expected == prompts.action_answer(c.target)
        assert c.direct_question.endswith(" Predict the robot's next actions.")
        assert think.question == f"{c.direct_question}\n{PAPER.requests[0]}"
        assert think.answer == f"<think></think><answer>{think.expected}</answer>"


def test_conversations_of_another_style_are_refused(made: Path, tmp_path: Path):
    _, _, talks = sources(made)
    with pytest.raises(RoboAlignError) as error:
        build(settings(talks, prompts="paper"), tmp_path / "out")
    assert error.value.problem == "the source has prompts of the style `labelled`, not `paper`"
    assert error.value.where == f"source talks, {talks['conversations']}"
    other = shutil.copytree(talks["conversations"], tmp_path / "talks")
    shards = {path.name: hash_file(path) for path in other.glob("*.parquet")}
    (other / "manifest.json").write_text(json.dumps({"prompts": "paper", "shards": shards}))
    build(settings({**talks, "conversations": str(other)}, prompts="paper"), tmp_path / "out")
    with pytest.raises(RoboAlignError, match="style `paper`, not `labelled`"):
        build(settings({**talks, "conversations": str(other)}), tmp_path / "another")
