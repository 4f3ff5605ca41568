"""`roboalign data mix`: what it prints, tokenised lengths, and data that lies elsewhere under another name."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_episodes import make_episode
from mixing_sources import shard_bytes, write_talks
from PIL import Image

from roboalign.actions.vocabulary import extend_tokenizer
from roboalign.cli.data_mix import mix_data
from roboalign.conversations.conversation import read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.mixture.sources.robot import renamed
from roboalign.mllm import load
from roboalign.mllm.encode import encode_conversation

TINY = Path(load.__file__).parent / "pretrained" / "tiny"
SHARED = Path(__file__).parents[2].parent / "shared/data"
TOKENS = {"fit": True, "horizon": 6, "scale": 4.0, "vocab_size": 128}


def write_file(path: Path, sources: list[dict], **more) -> str:
    path.write_text(yaml.safe_dump({"name": "made", "sources": sources, **more}))
    return str(path)


def test_the_lengths_are_those_of_the_encoded_samples(three: list[dict], tmp_path: Path):
    file = write_file(
        tmp_path / "m.yaml",
        three,
        tokenizer=TOKENS,
        model=str(TINY),
        shard_size=60,
        heldout={"share": 0.1},
    )
    told = mix_data(file, str(tmp_path / "out"), workers=1)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    held = manifest["counts"]["heldout"]["conversations"]
    assert f"110 samples in 3 shards, {held} held out" in told and "acts" in told and held
    assert sorted(manifest["lengths"]) == ["train-00000.lengths.npy", "train-00001.lengths.npy"]
    found = []
    for name, digest in manifest["lengths"].items():
        assert hash_file(tmp_path / "out" / name) == digest
        found.append(np.load(tmp_path / "out" / name))
        assert found[-1].dtype == np.uint32
    mllm = load.load_mllm(TINY)
    if load.find_vocabulary(mllm.tokenizer) is None:
        mllm = replace(
            mllm, vocabulary=extend_tokenizer(mllm.tokenizer, manifest["tokenizer"]["vocab_size"])
        )
    expected = []
    for c in read_conversations(tmp_path / "out", "train"):
        with Image.open(io.BytesIO(c.images[0])) as image:
            picture = np.array(image.convert("RGB"))
        expected.append(
            len(encode_conversation(mllm, [vars(turn) for turn in c.turns], [picture]).input_ids)
        )
    assert np.concatenate(found).tolist() == expected and len(set(expected)) > 3


def test_a_model_that_is_none_is_named_before_anything_is_read(three: list[dict], tmp_path: Path):
    file = write_file(tmp_path / "m.yaml", three, tokenizer=TOKENS, model=str(tmp_path))
    with pytest.raises(RoboAlignError, match=r"no model here"):
        mix_data(file, str(tmp_path / "out"), workers=1)
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("at", "message"),
    [("qa", "name=path"), ("qa=", "name=path"), ("other=x", "names no such path")],
)
def test_a_place_that_is_none_is_refused(three: list[dict], tmp_path: Path, at: str, message: str):
    file = write_file(tmp_path / "m.yaml", three, tokenizer=TOKENS)
    with pytest.raises(RoboAlignError, match=message):
        mix_data(file, str(tmp_path / "out"), workers=1, at=[at])


def test_another_evaluation_set_is_named_when_a_manifest_is_rebuilt(made: Path, tmp_path: Path):
    held = [made.joinpath(f"qa/{n}.jpg").read_bytes() for n in range(4)]
    write_talks(tmp_path / "held", held, split="heldout")
    write_talks(tmp_path / "other", held[:3], split="heldout")
    source = {"name": "qa", "qa": str(made / "qa/qa.json"), "count": 20}
    file = write_file(tmp_path / "m.yaml", [source], evaluation=[str(tmp_path / "held")])
    mix_data(file, str(tmp_path / "out"), workers=1)
    again = str(tmp_path / "out/manifest.json")
    with pytest.raises(
        RoboAlignError, match=r"what is evaluated on images differs.*--at evaluation.0="
    ):
        mix_data(again, str(tmp_path / "two"), workers=1, at=[f"evaluation.0={tmp_path / 'other'}"])
    shutil.copytree(tmp_path / "held", tmp_path / "moved")
    mix_data(again, str(tmp_path / "two"), workers=1, at=[f"evaluation.0={tmp_path / 'moved'}"])
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "out")


@pytest.mark.parametrize(
    ("id", "there", "named", "expected"),
    [
        ("foo/episode-000003", "/data/foo", "x/bar", "bar/episode-000003"),
        (
            "ABC/training/annotation-00001",
            "/mnt/ABC/training",
            "/data/task_ABC/training",
            "task_ABC/training/annotation-00001",
        ),
        ("foobar/episode-000003", "/data/foo", "x/bar", "foobar/episode-000003"),
        ("bridge/train/file/3", "/data/1.0.0", "x/1.0.0", "bridge/train/file/3"),
    ],
)
def test_ids_that_hold_a_folders_name_keep_that_of_the_mixture_file(
    id: str, there: str, named: str, expected: str
):
    episode = replace(make_episode("puck-push", steps=4), episode_id=id)
    assert renamed(episode, Path(there), Path(named)).episode_id == expected


@pytest.mark.skipif(
    not (SHARED / "lerobot_v2_picknplace").is_dir(), reason="the sample is not here"
)
def test_a_real_data_set_in_a_folder_of_another_name_makes_the_same_bytes(tmp_path: Path):
    first = shutil.copytree(SHARED / "lerobot_v2_picknplace", tmp_path / "first")
    source = {"name": "gr1", "robot": str(first), "count": 6}
    file = write_file(
        tmp_path / "m.yaml",
        [source],
        tokenizer={**TOKENS, "horizon": 4, "vocab_size": 512},
        rl={"source": "gr1", "count": 2, "at_most": 0.5},
    )
    mix_data(file, str(tmp_path / "out"), workers=1)
    first.rename(tmp_path / "second")
    with pytest.raises(RoboAlignError, match=str(first)):
        mix_data(str(tmp_path / "out/manifest.json"), str(tmp_path / "again"), workers=1)
    mix_data(
        str(tmp_path / "out/manifest.json"),
        str(tmp_path / "again"),
        workers=1,
        at=[f"gr1={tmp_path / 'second'}"],
    )
    assert shard_bytes(tmp_path / "again") == shard_bytes(tmp_path / "out")
    assert (tmp_path / "again/rl-ids.txt").read_text().startswith("gr1/first/episode-")


def test_a_fault_in_a_source_names_the_mixture_file(three: list[dict], tmp_path: Path):
    file = write_file(tmp_path / "m.yaml", [{**three[0], "name": "talks", "count": 10**6}])
    with pytest.raises(RoboAlignError) as caught:
        mix_data(file, str(tmp_path / "out"), workers=1)
    assert caught.value.where == f"{file}, source talks"
    assert caught.value.problem.startswith("1000000 samples are asked and it has ")


def test_a_key_given_twice_in_a_mixture_file_is_refused(three: list[dict], tmp_path: Path):
    file = write_file(tmp_path / "m.yaml", three)
    with Path(file).open("a") as more:
        more.write("name: other\n")
    with pytest.raises(RoboAlignError) as caught:
        mix_data(file, str(tmp_path / "out"), workers=1)
    assert caught.value.where == file and "duplicate key `name`" in caught.value.problem
