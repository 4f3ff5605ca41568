"""What must not be in training is found, listed and counted; what is broken is named."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from data_episodes import make_episode
from mixing_sources import (
    encoded,
    llava_record,
    picture,
    settings,
    write_qa,
    write_robot,
    write_talks,
)
from PIL import Image

from roboalign.conversations.conversation import read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.mixture.builder import build


def qa(path: Path, count: int, **more) -> dict:
    return {"name": "qa", "qa": str(path), "count": count, **more}


def dropped(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


def trained(folder: Path) -> set[str]:
    return {c.id for c in read_conversations(folder, "train")}


def test_pictures_of_an_evaluation_set_are_dropped_whatever_their_encoding(tmp_path: Path):
    file = write_qa(tmp_path / "qa", 40)
    jpeg = (tmp_path / "qa/3.jpg").read_bytes()
    larger = encoded(Image.open(io.BytesIO(jpeg)).resize((250, 188)), "JPEG", quality=80)
    shown = [
        jpeg,
        encoded(Image.open(io.BytesIO((tmp_path / "qa/5.jpg").read_bytes())), "JPEG", quality=80),
        larger,
        encoded(picture(5000)),
    ]
    folder = write_talks(tmp_path / "eval", shown, split="heldout")
    write_talks(
        folder, [(tmp_path / "qa/9.jpg").read_bytes()]
    )  # a heldout.parquet is all that is evaluated
    told = build(settings(qa(file, 30), evaluation=[str(folder)]), tmp_path / "out")
    clean = build(settings(qa(file, 40)), tmp_path / "clean")
    assert trained(tmp_path / "clean") - trained(tmp_path / "out") >= {"qa/q3", "qa/q5"}
    assert told["sources"]["qa"]["kept"] == 30 and clean["sources"]["qa"]["leaks"] == 0
    assert told["evaluation"]["sets"][0] == {
        "name": "eval",
        "images": 4,
        "faults": 0,
        "episodes": 4,
    }
    whole = build(settings(qa(file, 38), evaluation=[str(folder)]), tmp_path / "whole")
    assert trained(tmp_path / "whole") == {f"qa/q{n}" for n in range(40)} - {"qa/q3", "qa/q5"}
    assert {
        (row["id"], row["what"], row["reason"], row["other"]) for row in dropped(tmp_path / "whole")
    } == {("qa/q3", "leak", "same image", "eval"), ("qa/q5", "leak", "same picture", "eval")}
    assert whole["sources"]["qa"]["leaks"] == 2 and trained(tmp_path / "out") < trained(
        tmp_path / "whole"
    )


def test_what_leaks_is_replaced_or_told_as_missing(tmp_path: Path):
    file = write_qa(tmp_path / "qa", 20)
    folder = write_talks(
        tmp_path / "eval", [(tmp_path / f"qa/{n}.jpg").read_bytes() for n in range(4)]
    )
    told = build(settings(qa(file, 20), evaluation=[str(folder)]), tmp_path / "out")["sources"][
        "qa"
    ]
    assert (told["kept"], told["short"], told["leaks"], told["not_drawn"]) == (16, 4, 4, 0)
    again = {**qa(file, 20), "repeat": True}
    told = build(settings(again, evaluation=[str(folder)]), tmp_path / "again")["sources"]["qa"]
    assert (told["kept"], told["repeats"], told["short"]) == (16, 4, 0)


def test_robot_data_that_is_evaluated_on_is_not_trained_on_by_image_or_by_episode(tmp_path: Path):
    write_robot(tmp_path / "robot", 3, steps=10)
    same = make_episode("puck-push", seed=1, steps=10)
    # The actions of a training episode, and other images; and the name of one alone, which is no leak.
    other = make_episode("drawer-open", seed=1, steps=10)
    other.actions, other.episode_id = make_episode("puck-push", seed=2, steps=10).actions, "again"
    named = make_episode("drawer-open", seed=3, steps=10)
    named.episode_id = "synthetic/puck-push/seed-0"
    same.episode_id = "elsewhere"
    rewrite(RobotData("held", "test", lambda: iter([same, other, named])), tmp_path / "held")
    source = {"name": "acts", "robot": str(tmp_path / "robot"), "count": 10}
    config = settings(
        source,
        tokenizer={"fit": True, "horizon": 4, "vocab_size": 256, "scale": 2.0},
        evaluation=[str(tmp_path / "held")],
    )
    told = build(config, tmp_path / "out")
    assert {c.episode_id for c in read_conversations(tmp_path / "out", "train")} == {
        "synthetic/puck-push/seed-0"
    }
    reasons = told["sources"]["acts"]["reasons"]
    assert set(reasons) == {"leak: same image", "leak: same episode"}
    assert sum(reasons.values()) == told["sources"]["acts"]["leaks"] > 0


def test_frames_of_one_camera_stay_in_training(tmp_path: Path):
    image = [encoded(picture(0))] * 3 + [encoded(picture(0), "JPEG", quality=70)]
    write_talks(tmp_path / "talks", image)
    told = build(
        settings({"name": "t", "conversations": str(tmp_path / "talks"), "count": 4}),
        tmp_path / "out",
    )
    # The same turns about the same file are one sample; about another file of the picture they are not.
    assert [told["sources"]["t"][what] for what in ("kept", "duplicates", "short")] == [2, 2, 2]
    assert told["images"] == {"different": 2, "different_hashes": 1}
    assert {row["what"] for row in dropped(tmp_path / "out")} == {"duplicate"}
    assert {row["other"] for row in dropped(tmp_path / "out")} <= trained(tmp_path / "out")


def test_of_a_sample_in_two_sources_that_of_the_first_stays(tmp_path: Path):
    file = write_qa(tmp_path / "qa", 10)
    both = [{**qa(file, 4), "name": "first"}, {**qa(file, 6), "name": "second"}]
    told = build(settings(*both), tmp_path / "out")["sources"]
    found = [id.split("/") for id in trained(tmp_path / "out")]
    assert len(found) == 10 and len({name for _, name in found}) == 10
    assert told["first"]["duplicates"] == 0 and told["second"]["duplicates"] > 0
    assert (
        told["second"]["duplicates"] + told["second"]["not_drawn"] == 4
    )  # behind the last kept: not drawn


def test_a_picture_that_training_shows_leaves_the_held_out_set(tmp_path: Path):
    file = write_qa(tmp_path / "qa", 60)
    write_talks(tmp_path / "talks", [encoded(picture(n), "JPEG", quality=75) for n in range(60)])
    both = [qa(file, 25), {"name": "talks", "conversations": str(tmp_path / "talks"), "count": 40}]
    told = build(settings(*both, heldout={"share": 0.3}), tmp_path / "out")
    held = {c.id for c in read_conversations(tmp_path / "out", "heldout")}
    pictures = {
        id.split("/")[1].removeprefix("q").removeprefix("talk-") for id in trained(tmp_path / "out")
    }
    assert (
        held
        and not {id.split("/")[1].removeprefix("q").removeprefix("talk-") for id in held} & pictures
    )
    assert sum(row["heldout_seen"] for row in told["sources"].values()) > 0
    assert {
        row["id"] for row in dropped(tmp_path / "out") if row["what"] == "heldout seen"
    }.isdisjoint(held)


def test_each_fault_of_a_record_is_counted_by_its_reason(tmp_path: Path):
    file = write_qa(tmp_path / "qa", 12, suffix=".jsonl")
    (tmp_path / "qa/4.jpg").write_bytes((tmp_path / "qa/4.jpg").read_bytes()[:300])
    (tmp_path / "qa/5.jpg").unlink()
    two = {**llava_record("two", "1.jpg", "Which?", "A"), "image": ["1.jpg", "2.jpg"]}
    two["conversations"][0]["value"] = "<image><image> Which <|im_end|>?"
    half = llava_record("half", "1.jpg", "What is \ud800?", "it")
    lines = [
        json.dumps(two),
        json.dumps({"id": "none", "image": "1.jpg"}),
        json.dumps(half),
        '{"id": "cut"',
    ]
    file.write_text(file.read_text() + "\n".join(lines))
    told = build(settings(qa(file, 10)), tmp_path / "out")["sources"]["qa"]
    assert trained(tmp_path / "out") == {f"qa/q{n}" for n in range(12) if n not in (4, 5)}
    assert (told["found"], told["kept"], told["refused"], told["faults"]) == (16, 10, 1, 5)
    refused = "refused: the question spells <|im_end|>, which a model reads as a command"
    assert told["reasons"][refused] == 1
    assert (
        told["reasons"]["fault: the image does not exist"]
        == told["reasons"]["fault: a text is not Unicode"]
        == 1
    )
    assert sum("not a readable image" in reason for reason in told["reasons"]) == 1
    assert {row["id"] for row in dropped(tmp_path / "out")} >= {
        "qa/q4",
        "qa/q5",
        "qa/two",
        "qa/half",
    }


def test_a_file_that_is_cut_short_ends_the_command_with_its_place(tmp_path: Path):
    file = write_qa(tmp_path / "qa", 6)
    file.write_text(file.read_text()[:-30])
    with pytest.raises(
        RoboAlignError,
        match=r"qa.json, record 6: the array is cut short|qa.json, record 6: not valid",
    ):
        build(settings(qa(file, 3)), tmp_path / "out")
    write_talks(tmp_path / "talks", [encoded(picture(n)) for n in range(5)])
    shard = tmp_path / "talks/train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        RoboAlignError, match=r"train-00000.parquet: not a readable conversation shard"
    ):
        build(
            settings({"name": "t", "conversations": str(tmp_path / "talks"), "count": 3}),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_action_tokens_of_another_tokenizer_are_refused(tmp_path: Path):
    write_robot(tmp_path / "robot", 2, steps=8)
    tokens = {"fit": True, "horizon": 4, "scale": 2.0, "vocab_size": 256}
    source = {"name": "acts", "robot": str(tmp_path / "robot"), "count": 8}
    build(settings(source, tokenizer=tokens), tmp_path / "first")
    source = {"name": "again", "conversations": str(tmp_path / "first"), "count": 8}
    with pytest.raises(
        RoboAlignError, match="it has 0; 8 are left out as refused: it holds action tokens"
    ):
        build(settings(source), tmp_path / "second")


def test_a_preset_with_a_part_missing_is_read_and_says_so(tmp_path: Path):
    folder = tmp_path / "refspatial"
    (folder / "3D/image").mkdir(parents=True)
    (folder / "3D/image/a.png").write_bytes(encoded(picture(0)))
    record = {**llava_record("p1", "a.png", "Point at it.", "[(0.5, 0.25)]"), "image": ["a.png"]}
    (folder / "3D/vacant_qa.json").write_text(json.dumps([record]))
    source = {"name": "ref", "preset": "refspatial", "path": str(folder), "count": 1}
    told = build(settings(source, grid=10), tmp_path / "out")
    (only,) = read_conversations(tmp_path / "out", "train")
    assert (only.id, only.turns[0].type, only.turns[0].expected) == ("ref/p1", "point", "5 2")
    assert told["sources"]["ref"]["faults"] == 7 and told["files"].keys() == {
        "ref/3D/vacant_qa.json"
    }
    with pytest.raises(RoboAlignError, match="huggingface-cli download JingkunAn/RefSpatial"):
        build(settings({**source, "path": str(tmp_path)}), tmp_path / "none")


def test_images_may_lie_in_an_archive(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for n in range(3):
            archive.writestr(f"{n}.png", encoded(picture(n)))
    records = [llava_record(f"q{n}", f"{n}.png", f"Which {n}?", "this") for n in range(3)]
    (tmp_path / "qa.json").write_text(json.dumps(records))
    build(
        settings(qa(tmp_path / "qa.json", 3, images=str(tmp_path / "images.zip"))), tmp_path / "out"
    )
    assert trained(tmp_path / "out") == {"qa/q0", "qa/q1", "qa/q2"}


def test_cameras_must_be_named_where_there_are_several(tmp_path: Path):
    episode = make_episode("puck-push", steps=8)
    episode.images = {**episode.images, "wrist": episode.images["workspace"]}
    episode.cameras = {**episode.cameras, "wrist": episode.cameras["workspace"]}
    rewrite(RobotData("two", "test", lambda: iter([episode])), tmp_path / "two")
    source = {"name": "acts", "robot": str(tmp_path / "two"), "count": 4}
    tokens = {"fit": True, "horizon": 4, "scale": 2.0, "vocab_size": 256}
    with pytest.raises(RoboAlignError, match="source acts: its cameras are workspace, wrist"):
        build(settings(source, tokenizer=tokens), tmp_path / "out")
    assert build(settings({**source, "camera": "wrist"}, tokenizer=tokens), tmp_path / "out")
