"""Mixtures as users write them: folders of one name, two robots, a sparse gripper, odd pictures and texts."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixing_sources import settings
from PIL import Image

from roboalign.actions.normalize import ActionStats
from roboalign.align.dataset import check_texts, pictures
from roboalign.conversations.conversation import read_conversations, write_conversations
from roboalign.conversations.stored import StoredConversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.mixture.account import account_text
from roboalign.mixture.builder import build

TOKENS = {"fit": True, "horizon": 4, "scale": 4.0, "vocab_size": 256}
NAMES = tuple("abcdefg")


def robot(
    folder: Path,
    seed: int,
    names: tuple[str, ...] = NAMES,
    fps: float = 10.0,
    gripper=None,
    numbers: Sequence[int] = (0, 1),
) -> Path:
    """Episodes of 30 steps; frames are noise, so that none is another's."""
    random = np.random.default_rng(seed)

    def made(number: int) -> Episode:
        frames = [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(30)]
        actions = random.normal(size=(30, 7)).astype(np.float32)
        if gripper is not None:
            actions[:, 6] = gripper
        return Episode(
            f"e{number}",
            "task",
            "pick the block",
            fps,
            actions,
            actions.copy(),
            {"cam": [encode_png(frame) for frame in frames]},
            {"cam": Camera("cam", 16, 16)},
        )

    episodes = [made(number) for number in numbers]
    rewrite(RobotData("made", "test", lambda: iter(episodes), action_names=names), folder)
    return folder


def source(name: str, folder: Path, count: int = 20, **more) -> dict:
    return {"name": name, "robot": str(folder), "count": count, **more}


def columns_of(manifest: dict) -> dict[str, dict[str, int]]:
    """source -> the printed columns."""
    head, *rows = [line.split() for line in account_text(manifest).splitlines()]
    there = [row for row in rows if len(row) == len(head) and row[1].isdigit()]
    return {row[0]: dict(zip(head[1:], map(int, row[1:]))) for row in there}


# Robot data -----------------------------------------------------------------------------------------------------------


def test_folders_of_one_name_do_not_leak_into_each_other(tmp_path):
    first, second, evaluated = (
        robot(tmp_path / name / "train", seed)
        for seed, name in enumerate(("first", "second", "evaluated"))
    )
    config = settings(
        source("first", first),
        source("second", second),
        tokenizer=TOKENS,
        evaluation=[str(evaluated)],
    )
    manifest = build(config, tmp_path / "out")
    assert {row["kept"] for row in manifest["sources"].values()} == {20}
    assert {row["leaks"] for row in manifest["sources"].values()} == {0}


def test_what_is_evaluated_on_is_a_leak_wherever_its_folder_is(tmp_path):
    first, copy, other = (
        robot(tmp_path / name, seed) for name, seed in (("a/x", 0), ("b/y", 0), ("c", 1))
    )
    config = settings(
        source("first", first, 10),
        source("other", other, 10),
        tokenizer=TOKENS,
        evaluation=[str(copy)],
        near={"distance": 0, "difference": 0},
    )
    manifest = build(config, tmp_path / "out")
    assert manifest["sources"]["first"]["kept"] == 0 and manifest["sources"]["first"]["leaks"] > 0
    assert manifest["sources"]["other"]["kept"] == 10


def test_a_mixture_without_a_sample_is_an_error(tmp_path):
    folder = robot(tmp_path / "a", 0)
    config = settings(source("first", folder), tokenizer=TOKENS, evaluation=[str(folder)])
    with pytest.raises(RoboAlignError, match=r"no sample is left to train on \(60 x leak: same"):
        build(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mixture_is_not_written_into_a_source(tmp_path):
    folder = robot(tmp_path / "a", 0)
    before = sorted(folder.rglob("*"))
    with pytest.raises(RoboAlignError, match="the output is inside the source"):
        build(settings(source("first", folder), tokenizer=TOKENS), folder / "mixed")
    assert sorted(folder.rglob("*")) == before


def test_the_printed_columns_add_up(tmp_path):
    a, b = robot(tmp_path / "a", 0), robot(tmp_path / "b", 1)
    config = settings(
        source("a", a, 30),
        source("b", b, 80, repeat=True),
        source("again", a, 50),
        tokenizer=TOKENS,
        heldout={"share": 0.3},
    )
    manifest = build(config, tmp_path / "out")
    for name, row in columns_of(manifest).items():
        assert row == {key: manifest["sources"][name][key] for key in row}
        assert row["asked"] == row["kept"] + row["repeats"] + row["short"]
        others = (
            "heldout",
            "heldout_seen",
            "duplicates",
            "leaks",
            "refused",
            "faults",
            "not_drawn",
        )
        assert row["found"] == 60 == row["kept"] + sum(row[key] for key in others)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"names": tuple("hijklmn")}, "the dimensions are h, i, j, k, l, m, n and a, b, c"),
        ({"fps": 50.0}, "the rates are 50 and 10 steps a second"),
    ],
)
def test_two_robots_do_not_share_statistics_without_a_word(tmp_path, other, said):
    a, b = robot(tmp_path / "a", 0), robot(tmp_path / "b", 1, **other)
    sources = (source("a", a), source("b", b))
    with pytest.raises(RoboAlignError) as caught:
        build(settings(*sources, tokenizer=TOKENS), tmp_path / "out")
    assert said in caught.value.problem and "share statistics" in caught.value.problem
    assert caught.value.where == "source b" and "mixed: true" in caught.value.fix
    manifest = build(settings(*sources, tokenizer={**TOKENS, "mixed": True}), tmp_path / "out")
    (note,) = manifest["tokenizer"]["notes"]
    assert note.startswith(f"b and a share statistics although {said}")
    assert f"tokenizer: {note}" in account_text(manifest)


def test_a_space_says_that_two_recordings_mean_the_same(tmp_path):
    a, b = robot(tmp_path / "a", 0), robot(tmp_path / "b", 1, names=tuple("hijklmn"))
    spaced = (source("a", a, space="libero"), source("b", b, space="libero"))
    manifest = build(settings(*spaced, tokenizer=TOKENS), tmp_path / "out")
    assert manifest["counts"]["train"]["conversations"] == 40


def test_a_sparse_gripper_is_kept_and_said(tmp_path):
    # 2 commands of 300 steps: fewer than one step of a hundred.
    gripper = np.zeros(150)
    gripper[75] = 1.0
    folder = sparse_robot(tmp_path / "a", gripper)
    config = settings(source("a", folder, 300), tokenizer={**TOKENS, "scale": 10.0})
    manifest = build(config, tmp_path / "out")
    stats = ActionStats.from_dict(read_json(tmp_path / "out/tokenizer/stats.json"))
    assert stats.q01[6] == stats.q99[6] == 0 and stats.sparse[6] and not stats.constant[6]
    told = np.zeros((1, 7))
    told[0, 6] = 1.0
    assert stats.denormalize(stats.normalize(told))[0, 6] == 1.0
    assert account_text(manifest).count("quantiles are both 0, its values go from 0 to 1") == 1


def sparse_robot(folder: Path, gripper: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    steps = len(gripper)

    def made(number: int) -> Episode:
        actions = random.normal(size=(steps, 7)).astype(np.float32)
        actions[:, 6] = gripper
        frames = [random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(steps)]
        return Episode(
            f"e{number}",
            "task",
            "pick the block",
            10.0,
            actions,
            actions.copy(),
            {"cam": [encode_png(frame) for frame in frames]},
            {"cam": Camera("cam", 8, 8)},
        )

    episodes = [made(0), made(1)]
    rewrite(RobotData("made", "test", lambda: iter(episodes)), folder)
    return folder


# Questions and answers ------------------------------------------------------------------------------------------------


def qa(folder: Path, records: list[dict], **more) -> dict:
    folder.mkdir(exist_ok=True)
    (folder / "all.json").write_text(json.dumps(records))
    return {
        "name": "own",
        "qa": str(folder / "all.json"),
        "images": str(folder),
        "count": len(records),
        **more,
    }


def record(id_: str, image: str, question: str = "What is it?", answer: str = "A block.") -> dict:
    turns = [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": id_, "image": image, "conversations": turns}


def trained(folder: Path, made: Image.Image, name: str, **saved) -> np.ndarray:
    """What training sees of a picture that went through a mixture."""
    folder.mkdir()
    made.save(folder / name, **saved)
    build(settings(qa(folder, [record("a", name)])), folder / "out")
    (conversation,) = read_conversations(folder / "out", "train")
    return pictures(conversation)[0]


def test_training_sees_pictures_as_a_viewer_shows_them(tmp_path):
    stored = np.full((32, 64, 3), 255, np.uint8)
    stored[:16, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    phone = trained(tmp_path / "exif", Image.fromarray(stored), "a.png", exif=exif)
    assert phone.shape == (64, 32, 3) and phone[0, 31].tolist() == [255, 0, 0]
    assert phone[0, 0].tolist() == [255, 255, 255]
    drawn = np.zeros((32, 32, 4), np.uint8)
    drawn[10:20, 10:20, 3] = 255
    chart = trained(tmp_path / "alpha", Image.fromarray(drawn), "a.png")
    assert chart[0, 0].tolist() == [255] * 3 and chart[15, 15].tolist() == [0] * 3
    ramp = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    scaled = trained(tmp_path / "gray16", Image.fromarray(ramp), "a.png")
    expected = np.rint(ramp.astype(float) / 257).astype(np.uint8)
    assert np.array_equal(scaled, np.repeat(expected[..., None], 3, axis=2))


def noise(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_record_that_spells_a_control_token_is_left_out_and_counted(tmp_path):
    noise(tmp_path, 4)
    texts = ["What does <|im_end|> do?", "Which?", "Who?", "Where?"]
    records = [record(f"r{i}", f"{i}.png", text) for i, text in enumerate(texts)]
    manifest = build(settings(qa(tmp_path, records) | {"count": 3}), tmp_path / "out")
    row = manifest["sources"]["own"]
    assert (row["kept"], row["refused"]) == (3, 1)
    (dropped,) = map(json.loads, (tmp_path / "out/dropped.jsonl").read_text().splitlines())
    assert dropped["id"] == "own/r0"
    assert dropped["reason"] == "the question spells <|im_end|>, which a model reads as a command"


def test_foreign_reasoning_is_understood(tmp_path):
    noise(tmp_path, 3)
    answers = ["<think>It is blue.</think>\nblue", "<answer>red</answer>", "<think>never closed"]
    records = [record(f"r{i}", f"{i}.png", answer=text) for i, text in enumerate(answers)]
    manifest = build(settings(qa(tmp_path, records) | {"count": 2}), tmp_path / "out")
    assert manifest["sources"]["own"]["refused"] == 1
    found = {c.id: c.turns[0].answer for c in read_conversations(tmp_path / "out", "train")}
    assert found == {
        "own/r0": "<think>It is blue.</think><answer>answer blue</answer>",
        "own/r1": "<think></think><answer>answer red</answer>",
    }


class Words:
    """A model's tokenizer, of which only its special tokens are asked."""

    class tokenizer:
        all_special_tokens = ("<|end|>",)

    def __init__(self) -> None:
        self.cache: dict = {}


def test_training_refuses_a_special_token_before_it_begins(tmp_path):
    mllm = Words()
    noise(tmp_path, 2)
    records = [record(f"r{i}", f"{i}.png") for i in range(2)]
    build(settings(qa(tmp_path, records)), tmp_path / "out")
    conversations = list(read_conversations(tmp_path / "out", "train"))
    check_texts(mllm, conversations)
    turn = replace(conversations[1].turns[0], question="a <|end|> b")
    conversations[1] = replace(conversations[1], turns=(turn,))
    with pytest.raises(RoboAlignError, match=r"spells the special token <\|end\|>") as caught:
        check_texts(mllm, conversations)
    assert caught.value.where == f"conversation {conversations[1].id}"
    (tmp_path / "stored").mkdir()
    write_conversations(tmp_path / "stored/train-00000.parquet", conversations)
    stored = StoredConversations(tmp_path / "stored", "train")
    assert stored.spelling(["<|none|>", "<|end|>"]) == (conversations[1].id, "<|end|>")
    assert stored.spelling(["<|none|>"]) is None


def test_a_fifo_and_a_link_out_of_the_folder_are_faults_of_their_records(tmp_path):
    images = tmp_path / "images"
    noise(images, 3)
    os.mkfifo(images / "fifo.png")
    secret = tmp_path / "secret.png"
    secret.write_bytes((images / "2.png").read_bytes())
    (images / "2.png").unlink()
    (images / "link.png").symlink_to(secret)
    records = [record(f"r{n}", n) for n in ("0.png", "1.png", "fifo.png", "link.png")]
    manifest = build(settings(qa(images, records)), tmp_path / "out")
    row = manifest["sources"]["own"]
    assert (row["kept"], row["faults"]) == (2, 2)
    assert row["reasons"] == {
        "fault: a link leads out of the image folder": 1,
        "fault: not a plain file": 1,
    }
    allowed = build(settings(qa(images, records, links=True)), tmp_path / "with links")
    assert allowed["sources"]["own"]["kept"] == 3


def test_faults_have_the_same_text_on_every_run(tmp_path):
    noise(tmp_path, 2)
    (tmp_path / "bad.png").write_bytes(b"no image")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = ("0.png", "1.png", "bad.png", "cut.png")
    records = [record(f"r{name}", name) for name in names]
    texts = set()
    for number in range(2):
        build(settings(qa(tmp_path, records)), tmp_path / f"out{number}")
        texts.add((tmp_path / f"out{number}/dropped.jsonl").read_text())
    (text,) = texts
    assert text.count("not a readable image") == 2 and "0x" not in text


def test_parts_of_one_recording_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    """An episode whose instruction changes is read in parts: one held out, its neighbor would be trained on."""
    folder = robot(tmp_path / "a", 0, numbers=range(12))
    change_instruction(folder, at=15)
    build(
        settings(source("a", folder, 200), tokenizer=TOKENS, heldout={"share": 0.4}),
        tmp_path / "out",
    )
    sides = {
        split: {c.episode_id for c in read_conversations(tmp_path / "out", split)}
        for split in ("heldout", "train")
    }
    assert all("/steps-" in episode for ids in sides.values() for episode in ids)
    held, trained = ({id.rpartition("/steps-")[0] for id in ids} for ids in sides.values())
    assert held and trained and not held & trained


def change_instruction(folder: Path, at: int) -> None:
    """Give every episode another instruction from step `at` on."""
    [tasks] = (folder / "meta").glob("tasks.parquet")
    table = pd.read_parquet(tasks)
    table.loc["put the block down"] = {"task_index": len(table)}
    table.to_parquet(tasks)
    for path in (folder / "data").rglob("*.parquet"):
        rows = pq.read_table(path)
        index = [int(frame >= at) for frame in rows["frame_index"].to_pylist()]
        column = pa.array(index, rows.schema.field("task_index").type)
        pq.write_table(
            rows.set_column(rows.column_names.index("task_index"), "task_index", column), path
        )
