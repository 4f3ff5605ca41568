"""The mixture: what it holds, that it can be rebuilt byte for byte, and that a leak is found."""

import hashlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_episodes import make_episode

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.conversations import prompts
from roboalign.conversations.conversation import messages, read_conversations
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.mixture import demonstrations
from roboalign.mixture.demonstrations import build_mixture
from roboalign.mixture.manifest import assert_disjoint, read_manifest, verify_manifest
from roboalign.mixture.packed import MixConfig
from roboalign.questions.registry import QUESTION_TYPES, asked_types, label_of

LABELLED = STYLES["labelled"]

CONFIG = MixConfig(
    conversations=120,
    shard_size=50,
    heldout_questions=4,
    heldout_actions=6,
    grid=16,
    rl_share=0.009,
    heldout_episode_share=0.17,
)


@pytest.fixture(scope="session")
def tokens(episodes):
    stats = ActionStats.fit(np.concatenate([episode.actions for episode in episodes]))
    chunks = np.concatenate([stats.normalize(episode.chunks(6)) for episode in episodes])
    return FastTokenizer.fit(chunks, scale=4, vocab_size=128), stats


@pytest.fixture(scope="session")
def mixture(tmp_path_factory, episodes, tokens) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "mix"
    build_mixture(episodes, *tokens, CONFIG, folder)
    return folder


@pytest.fixture
def copied(mixture, tmp_path) -> Path:
    return Path(shutil.copytree(mixture, tmp_path / "mix"))


def test_counts_are_what_the_shards_hold(mixture):
    manifest = verify_manifest(mixture)
    train = read_conversations(mixture, "train")
    turns = [turn for conversation in train for turn in conversation.turns]
    assert manifest["counts"]["train"]["kind"] == dict(
        sorted(Counter(turn.kind for turn in turns).items())
    )
    assert len(train) == 120 and len({conversation.id for conversation in train}) == 120
    assert all(4 <= len(conversation.turns) <= 8 for conversation in train)
    assert all(len({turn.type for turn in c.turns}) == len(c.turns) for c in train)
    assert sorted(path.name for path in mixture.glob("train-*")) == [
        f"train-0000{i}.parquet" for i in range(3)
    ]
    assert manifest["counts"]["train"]["source"] == {"synthetic": 120}
    for path in mixture.glob("*.parquet"):
        assert manifest["shards"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_turns_are_packed_in_random_order(mixture):
    places = [
        next((i for i, turn in enumerate(c.turns) if turn.kind == "action"), None)
        for c in read_conversations(mixture, "train")
    ]
    with_action = [place for place in places if place is not None]
    assert 0.65 < len(with_action) / len(places) < 0.92  # 0.8, n = 120: +-3.5 standard errors
    assert len(set(with_action)) >= 5


def test_no_reasoning_is_shown_before_an_action(mixture):
    for split in ("train", "rl", "heldout"):
        for conversation in read_conversations(mixture, split, kinds=["action"]):
            for turn in conversation.turns:
                assert turn.answer == f"<think></think><answer>{turn.expected}</answer>"
                assert split != "train" or turn.mode == "direct"
    modes = {
        (turn.type, turn.mode) for c in read_conversations(mixture, "train") for turn in c.turns
    }
    assert modes >= {
        (name, mode) for name in asked_types(CONFIG.weights) for mode in ("direct", "think")
    }


def test_every_answer_opens_with_the_label_that_its_question_names(mixture):
    for split in ("train", "rl", "heldout"):
        for turn in (turn for c in read_conversations(mixture, split) for turn in c.turns):
            request, label = re.search(
                r'(Answer directly|then answer) as "([^"]+)"\.', turn.question
            ).groups()
            assert (request == "Answer directly") == (turn.mode == "direct")
            said = re.fullmatch(r"<think>(.*)</think><answer>(.+)</answer>", turn.answer)
            assert bool(said[1]) == (turn.mode == "think" and turn.kind != "action")
            if turn.kind == "action":
                assert (
                    label == "<ACTION_START>"
                    and said[2] == turn.expected
                    and turn.expected.startswith(label)
                )
            else:
                assert said[2] == f"{label} {turn.expected}" and label == label_of(turn.type)


def test_the_request_changes_its_place_in_training_alone(mixture):
    def places(split):
        return {
            (turn.kind == "action", turn.question.startswith(tuple(LABELLED.requests)))
            for c in read_conversations(mixture, split)
            for turn in c.turns
        }

    assert places("train") == {(False, False), (False, True), (True, False), (True, True)}
    assert places("rl") == {(True, False)} and places("heldout") == {(False, False), (True, False)}

    def wordings(split):
        return {
            LABELLED.bare(turn.question).split(". ", 1)[1]
            for c in read_conversations(mixture, split, ["action"])
            for turn in c.turns
        }

    assert wordings("train") == set(prompts.NEXT_STEP)
    assert wordings("rl") == wordings("heldout") == {prompts.NEXT_STEP[0]}  # what the head reads


def test_targets_decode_to_the_clean_chunk(mixture, episodes, tokens):
    fast, stats = tokens
    by_id = {episode.episode_id: episode for episode in episodes}
    samples = read_conversations(mixture, "rl") + read_conversations(
        mixture, "heldout", kinds=["action"]
    )
    assert len(samples) >= 12
    for sample in samples:
        chunk = stats.normalize(by_id[sample.episode_id].chunk(sample.frame, 6))
        np.testing.assert_allclose(sample.chunk, chunk, atol=1e-6)
        assert sample.turns[0].expected == (
            "<ACTION_START>" + "".join(f"<FAST_{i}>" for i in sample.target) + "<ACTION_END>"
        )
        decoded = fast.decode(sample.target)
        assert np.abs(decoded - chunk).max() < 0.5 / fast.scale * np.sqrt(
            6
        )  # every coefficient off by half a step
        assert sample.images[0] == by_id[sample.episode_id].png("workspace", sample.frame)


def test_rl_is_a_small_part_of_the_training_actions(mixture):
    manifest = read_manifest(mixture)
    rl = read_conversations(mixture, "rl")
    actions = read_conversations(mixture, "train", kinds=["action"])
    trained = {(c.episode_id, c.frame, c.turns[0].expected) for c in actions}
    assert {(c.episode_id, c.frame, c.turns[0].expected) for c in rl} <= trained
    n_turns = manifest["counts"]["train"]["turns"]
    assert len(rl) == int(0.009 * n_turns) > 0
    assert manifest["rl"] == {"samples": len(rl), "share": pytest.approx(len(rl) / n_turns)}
    assert manifest["rl"]["share"] < 0.01
    for c in rl:
        stem = c.turns[0].question.removesuffix('Think first, then answer as "<ACTION_START>".')
        assert (
            stem != c.turns[0].question
            and c.direct_question == stem + 'Answer directly as "<ACTION_START>".'
        )


def test_heldout_asks_every_type_in_both_modes_from_other_episodes(mixture):
    manifest = read_manifest(mixture)
    held = read_conversations(mixture, "heldout")
    assert {c.episode_id for c in held} <= set(manifest["splits"]["heldout"])
    assert len(manifest["splits"]["heldout"]) == 4 and len(manifest["splits"]["train"]) == 20
    assert not set(manifest["splits"]["heldout"]) & {
        c.episode_id for c in read_conversations(mixture, "train")
    }
    counts = Counter((c.turns[0].type, c.turns[0].mode) for c in held)
    assert counts == {
        (name, mode): 6 if name == "action" else 4
        for name in [*asked_types(CONFIG.weights), "action"]
        for mode in ("direct", "think")
    }
    pairs = {}
    for c in held:
        pairs.setdefault(c.id.rsplit("-", 1)[0], []).append((c.frame, c.turns[0].expected))
    assert all(len(pair) == 2 and pair[0] == pair[1] for pair in pairs.values())


def test_the_trace_is_asked_and_measured_only_where_it_is_named(
    mixture, episodes, tokens, tmp_path
):
    unnamed = build_mixture(
        episodes,
        *tokens,
        CONFIG.model_copy(update={"weights": {**CONFIG.weights, "trace": 0.0}}),
        tmp_path / "unnamed",
    )
    assert (
        unnamed["shards"] == read_manifest(mixture)["shards"]
    )  # the draws of a mixture without it do not move
    assert "trace" in QUESTION_TYPES and "trace" not in unnamed["counts"]["heldout"]["type"]
    named = build_mixture(
        episodes,
        *tokens,
        CONFIG.model_copy(update={"weights": {"planning": 1.0, "trace": 1.0}}),
        tmp_path / "named",
    )
    assert named["counts"]["heldout"]["type"]["trace"] == 2 * 4
    share = named["counts"]["train"]["type"]["trace"] / named["counts"]["train"]["conversations"]
    assert (
        share > 0.7
    )  # as likely as the ten planning types together to be drawn first, and four to eight are drawn


def test_same_seed_same_bytes_other_seed_other_rows(mixture, episodes, tokens, tmp_path):
    build_mixture(episodes, *tokens, CONFIG, tmp_path / "again")
    build_mixture(episodes, *tokens, CONFIG.model_copy(update={"seed": 1}), tmp_path / "other")
    assert read_manifest(tmp_path / "again")["shards"] == read_manifest(mixture)["shards"]
    for name in read_manifest(mixture)["shards"]:
        assert pq.read_table(tmp_path / "other" / name) != pq.read_table(mixture / name)


def test_language_only_part(mixture):
    whole = read_conversations(mixture, "train")
    part = read_conversations(mixture, "train", ("general", "embodied", "reasoning"))
    assert len(part) == len(whole)
    assert not any("<ACTION_START>" in turn.answer for c in part for turn in c.turns)
    assert sum(len(c.turns) for c in whole) - sum(len(c.turns) for c in part) == sum(
        turn.kind == "action" for c in whole for turn in c.turns
    )


def test_messages_form(mixture):
    conversation = read_conversations(mixture, "train")[0]
    found = messages(conversation)
    assert [message["role"] for message in found] == ["user", "assistant"] * len(conversation.turns)
    assert found[0]["content"] == [
        {"type": "image"},
        {"type": "text", "text": conversation.turns[0].question},
    ]
    assert sum(part["type"] == "image" for message in found for part in message["content"]) == 1
    assert found[1]["content"] == [{"type": "text", "text": conversation.turns[0].answer}]


def test_disjoint_passes_on_heldout_and_catches_each_planted_leak(copied, episodes):
    manifest = read_manifest(copied)
    heldout = manifest["splits"]["heldout"]
    by_id = {episode.episode_id: episode for episode in episodes}
    assert_disjoint(copied, heldout, [by_id[i].png("workspace", 0) for i in heldout])
    trained = read_conversations(copied, "train")[-1]
    with pytest.raises(RoboAlignError, match="1 evaluation episodes are in the training split"):
        assert_disjoint(copied, [*heldout, trained.episode_id])
    with pytest.raises(RoboAlignError, match="an image that is evaluated on"):
        assert_disjoint(copied, heldout, trained.images)
    path = (
        copied / "train-00001.parquet"
    )  # a row of a held-out episode that the manifest does not speak of
    rows = pq.read_table(path).to_pylist()
    rows[7]["episode_id"] = heldout[0]
    pq.write_table(pq.read_table(path).from_pylist(rows, schema=pq.read_schema(path)), path)
    (copied / "manifest.json").write_text(json.dumps(listing(manifest, path)))
    with pytest.raises(
        RoboAlignError, match=f"train-00001.parquet: it holds frames of .* {heldout[0]}"
    ):
        assert_disjoint(copied, heldout)


def test_a_heldout_frame_that_is_a_training_image_is_dropped(tmp_path, tokens):
    episodes = [make_episode("puck-push", seed) for seed in range(4)]
    for episode in episodes:
        episode.images = {
            "workspace": [episodes[0].images["workspace"][0], *episode.images["workspace"][1:]]
        }
    config = CONFIG.model_copy(
        update={"heldout_episode_share": 0.25, "heldout_actions": 29, "conversations": 200}
    )
    manifest = build_mixture(episodes, *tokens, config, tmp_path / "mix")
    assert manifest["sources"]["demonstrations"]["heldout_seen"] == 1
    assert {c.frame for c in read_conversations(tmp_path / "mix", "heldout", ["action"])} == set(
        range(1, 30)
    )


def listing(manifest: dict, shard: Path) -> dict:
    """The manifest, with a changed shard listed as it now is."""
    return manifest | {"shards": manifest["shards"] | {shard.name: hash_file(shard)}}


def test_verify_finds_what_was_changed(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(
        json.dumps(manifest | {"counts": manifest["counts"] | {"rl": manifest["counts"]["train"]}})
    )
    with pytest.raises(RoboAlignError, match="the counts of rl"):
        verify_manifest(copied)
    path.write_text(json.dumps(manifest))
    shard = copied / "train-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RoboAlignError, match=r"train-00002.parquet: its sha256"):
        verify_manifest(copied)
    with pytest.raises(RoboAlignError, match=r"train-00002.parquet: its sha256"):
        read_conversations(copied, "train")
    path.write_text(json.dumps(listing(manifest, shard)))
    with pytest.raises(RoboAlignError, match="not a readable mixture shard"):
        read_conversations(copied, "train")
    shard.unlink()
    with pytest.raises(RoboAlignError, match="the manifest lists"):
        verify_manifest(copied)


def test_bad_requests_are_refused(mixture, episodes, tokens, tmp_path):
    with pytest.raises(RoboAlignError, match="unknown split 'test'"):
        read_conversations(mixture, "test")
    with pytest.raises(RoboAlignError, match=r"unknown kinds \['actions'\]"):
        read_conversations(mixture, "train", ["actions"])
    with pytest.raises(RoboAlignError, match="no train shard"):
        read_conversations(tmp_path, "train")
    with pytest.raises(RoboAlignError, match="two episodes are called"):
        build_mixture([episodes[0], episodes[0]], *tokens, CONFIG, tmp_path / "twice")
    with pytest.raises(RoboAlignError, match="raise conversations"):
        build_mixture(
            episodes, *tokens, CONFIG.model_copy(update={"conversations": 3}), tmp_path / "small"
        )
    assert not (tmp_path / "twice").exists() and not (tmp_path / "small").exists()


def test_a_killed_build_goes_on_with_the_same_bytes(
    mixture, episodes, tokens, tmp_path, monkeypatch
):
    def stops(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demonstrations, "rl_conversations", stops)
        with pytest.raises(KeyboardInterrupt):
            build_mixture(episodes, *tokens, CONFIG, tmp_path / "mix")
    (work,) = tmp_path.iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in (work / "out").glob("train-*")}
    assert work.name == ".mix.building" and len(kept) == 3
    found = build_mixture(episodes, *tokens, CONFIG, tmp_path / "mix")
    assert {name: (tmp_path / "mix" / name).stat().st_mtime_ns for name in kept} == kept
    assert found["shards"] == read_manifest(mixture)["shards"] and not work.exists()
    assert found["sources"] == read_manifest(mixture)["sources"]
    assert build_mixture(episodes, *tokens, CONFIG, tmp_path / "mix") == found
    with pytest.raises(RoboAlignError, match="the folder is there already"):
        build_mixture(episodes[1:], *tokens, CONFIG, tmp_path / "mix")


def test_the_style_paper_has_tags_only_where_reasoning_is_asked_for(
    episodes, tokens, mixture, tmp_path
):
    manifest = build_mixture(episodes, *tokens, CONFIG, tmp_path / "mix", prompts="paper")
    assert manifest["prompts"] == "paper" and read_manifest(mixture)["prompts"] == "labelled"
    request = "Think before you answer."
    for split in ("train", "rl", "heldout"):
        same = zip(read_conversations(tmp_path / "mix", split), read_conversations(mixture, split))
        for conversation, labelled in same:
            assert (conversation.id, conversation.target) == (labelled.id, labelled.target)
            for turn, other in zip(conversation.turns, labelled.turns):
                assert (turn.type, turn.mode, turn.expected) == (
                    other.type,
                    other.mode,
                    other.expected,
                )
                assert (request in turn.question) == (turn.mode == "think")
                assert "Answer directly" not in turn.question
                if turn.mode == "direct":
                    assert turn.answer == turn.expected
                else:
                    said = other.answer.replace(f"<answer>{label_of_turn(other)} ", "<answer>")
                    assert turn.answer == said
    (rl, *_) = read_conversations(tmp_path / "mix", "rl")
    assert rl.direct_question.endswith("Predict the robot's next actions.")
    assert rl.turns[0].question.startswith(f"{rl.direct_question}\n{request}")


def label_of_turn(turn) -> str:
    return "<ACTION_START>" if turn.kind == "action" else label_of(turn.type)
