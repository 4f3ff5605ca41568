"""`roboalign data mix --dry-run`: its numbers are those of the mixture, and nothing is written."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from mixing_sources import encoded, llava_record, picture, settings
from paper_layouts import WRITERS, write_all

from roboalign.cli.data_mix import mix_data
from roboalign.cli.main import main
from roboalign.cli.mix_preview import preview_mix
from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.qa import sampling
from roboalign.conversations.qa.presets import QA_PRESETS
from roboalign.conversations.qa.read import LAYOUTS
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, write_json
from roboalign.episodes.pictures import size_of_file
from roboalign.mixture.preview import preview
from roboalign.mllm import load

TINY = Path(load.__file__).parent / "pretrained" / "tiny"
PAPER = Path(__file__).parents[2] / "recipes/mixtures/paper.yaml"
PAGE = Path(__file__).parents[2] / "docs/how-to/build-a-mixture.md"
TOKENS = {"fit": True, "horizon": 6, "scale": 4.0, "vocab_size": 128}


def write_file(path: Path, sources: list[dict], **more) -> str:
    path.write_text(yaml.safe_dump({"name": "made", "sources": sources, **more}))
    return str(path)


def told(file: str, most: int = 200, **more) -> tuple[dict, int]:
    text, status = preview_mix(file, most=most, as_json=True, at=more.pop("at", ()))
    return json.loads(text), status


def test_the_numbers_are_those_of_the_mixture_where_all_is_sampled(made: Path, tmp_path: Path):
    sources = [
        {"name": "qa", "qa": str(made / "qa/qa.json"), "count": 60},
        {"name": "talks", "conversations": str(made / "talks"), "count": 30},
    ]
    file = write_file(tmp_path / "m.yaml", sources, model=str(TINY))
    before = sorted(tmp_path.rglob("*"))
    found, status = told(file)
    assert status == 0 and found["complete"] and sorted(tmp_path.rglob("*")) == before
    mix_data(file, str(tmp_path / "out"), workers=1)
    lengths = np.load(tmp_path / "out/train-00000.lengths.npy")
    qa, talks = found["sources"]
    assert qa["tokens"] + talks["tokens"] == lengths.sum()
    assert (qa["records"], qa["sampled"], qa["images"], qa["counted"]) == (60, 60, 60, True)
    assert (talks["records"], talks["images"], talks["state"]) == (30, 30, "found")
    files = [*made.glob("qa/*.jpg"), made / "qa/qa.json"]
    assert qa["disk_bytes"] == sum(path.stat().st_size for path in files)
    assert talks["disk_bytes"] == (made / "talks/train-00000.parquet").stat().st_size
    pictures = sum(path.stat().st_size for path in made.glob("qa/*.jpg"))
    assert pictures < qa["mixture_bytes"] < pictures + 60 * 1000
    assert qa["build_seconds"] > 0


def test_robot_data_is_counted_in_frames_and_has_action_tokens(three: list[dict], tmp_path: Path):
    file = write_file(tmp_path / "m.yaml", three, tokenizer=TOKENS, model=str(TINY))
    found, status = told(file)
    acts = found["sources"][1]
    assert status == 0 and (acts["records"], acts["images"], acts["counted"]) == (80, 50, True)
    mix_data(file, str(tmp_path / "out"), workers=1)
    lengths = np.load(tmp_path / "out/train-00000.lengths.npy")
    whole = sum(row["tokens"] for row in found["sources"])
    assert whole == pytest.approx(int(lengths.sum()), rel=0.1)  # it fits on another draw of chunks


def test_what_is_missing_is_named_with_the_way_to_get_it(made: Path, tmp_path: Path):
    WRITERS["refspatial"](tmp_path / "ref")
    (tmp_path / "ref/3D/vacant_qa.json").unlink()
    (tmp_path / "ref/3D/image_multi_view/3_image.png").unlink()
    sources = [
        {"name": "qa", "qa": str(made / "qa/qa.json"), "count": 61},
        {"name": "ref", "preset": "refspatial", "path": str(tmp_path / "ref"), "count": 6},
        {"name": "none", "preset": "robopoint", "path": str(tmp_path / "none"), "count": 6},
        {"name": "hub", "robot": "someone/robot@main", "count": 1},
        {"name": "twice", "qa": str(made / "qa/qa.json"), "count": 100, "repeat": True},
    ]
    held = [str(tmp_path / "held")]
    file = write_file(tmp_path / "m.yaml", sources, evaluation=held, tokenizer=TOKENS)
    found, status = told(file)
    qa, ref, none, hub, twice = found["sources"]
    assert status == 1 and not found["complete"]
    assert found["missing"]["evaluation.0"].endswith("give --at evaluation.0=PATH")
    assert qa["state"] == "part" and qa["missing"][0].startswith("about 1 of the 61 samples asked")
    assert ref["missing"][0].startswith("3D/vacant_qa.json: this part of the source is missing")
    assert "image_multi_view/3_image.png" in ref["missing"][1]
    assert ref["left_out"] == {"fault: an image is missing": 1} and ref["good"] == 6
    assert none["state"] == "missing" and none["records"] is None and none["images"] is None
    assert "huggingface-cli download wentao-yuan/robopoint-data" in none["missing"][0]
    assert hub["missing"] == [
        "someone/robot@main is not on this machine; download it and give --at hub=PATH"
    ]
    assert (twice["state"], twice["images"]) == ("found", 100)


def test_the_papers_mixture_names_what_is_read_and_what_is_not(tmp_path: Path, capsys):
    at = [f"--at={name}={path}" for name, path in write_all(tmp_path).items()]
    assert main(["data", "mix", str(PAPER), "--dry-run", "--json", *at]) == 1
    found = json.loads(capsys.readouterr().out)
    rows = {row["source"]: row for row in found["sources"]}
    read = {name: (row["sampled"], row["good"]) for name, row in rows.items() if row["sampled"]}
    assert read == {
        "llava-onevision": (5, 5),
        "refspatial": (8, 8),
        "robopoint": (3, 3),
        "egoplan-it": (2, 1),
        "sharerobot": (2, 2),
    }
    images = {name: rows[name]["images"] for name in read}
    expected = {"llava-onevision": 5, "refspatial": 9, "robopoint": 2, "egoplan-it": 4}
    assert images == {**expected, "sharerobot": 15}
    assert rows["egoplan-it"]["left_out"] == {"fault: frame N is in video .. of ..": 1}
    _check_docs(rows, read, images)
    absent = {name for name, row in rows.items() if row["state"] == "missing"}
    own = {"multi-view", "robotvqa", "roboalign-vqa", "robot-qa", "reasoning", "bridge-actions"}
    assert absent == own and found["missing"]["tokenizer"].startswith("data/fast_plus")
    assert main(["data", "mix", str(PAPER), "--dry-run", *at]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == (
        ["source", "state", "asked", "there", "images", "tokens", "disk", "mixture", "hours"]
    )
    assert max(len(line) for line in lines[:14]) <= 80
    assert lines[12].split()[:3] == ["sum", "2.28M", "20"]


def test_the_published_layouts_are_mixed_as_previewed(tmp_path: Path):
    """Records of 0 to 12 images, and a multi-view conversation of three, in one mixture."""
    counts = {
        "llava-onevision": 5,
        "refspatial": 8,
        "robopoint": 3,
        "egoplan-it": 1,
        "sharerobot": 2,
    }
    sources = [
        {"name": name, "preset": name, "path": str(path), "count": counts[name]}
        for name, path in write_all(tmp_path / "data").items()
    ]
    views = tuple(encoded(picture(n, (40 + n, 30))) for n in (2, 0, 1))
    turn = Turn("embodied", "text", "direct", "Which of the views is nearest?", "The second.", "it")
    (tmp_path / "views").mkdir()
    write_conversations(
        tmp_path / "views/train-00000.parquet",
        [Conversation("v", "scene", 0, "views", views, (turn,))],
    )
    shards = {"train-00000.parquet": hash_file(tmp_path / "views/train-00000.parquet")}
    write_json(tmp_path / "views/manifest.json", {"prompts": "paper", "shards": shards})
    sources.append({"name": "multi-view", "conversations": str(tmp_path / "views"), "count": 1})
    file = write_file(tmp_path / "m.yaml", sources, prompts="paper")
    found, status = told(file)
    mix_data(file, str(tmp_path / "out"), workers=1)
    mixed = list(read_conversations(tmp_path / "out", "train"))
    for row in found["sources"]:
        own = [one for one in mixed if one.id.startswith(f"{row['source']}/")]
        assert (len(own), row["state"]) == (row["asked"], "found")
        assert sum(len(one.images) for one in own) == row["images"]
    assert status == 0 and next(one for one in mixed if one.id == "multi-view/v").images == views
    several = next(one for one in mixed if one.turns[0].answer == "The sky.")
    assert [size_of_file(image)[0] for image in several.images] == [36, 35]
    assert several.turns[0].question == "Before: <image> After: <image>\nWhat changed?"
    assert max(len(one.images) for one in mixed) == 12
    assert sum(not one.images for one in mixed) == 2


def _check_docs(rows: dict, read: dict, images: dict) -> None:
    """The page's table of sources has the presets' counts and licenses, and these records."""
    text = PAGE.read_text().split("## The paper's eleven sources")[1].split("\n## ")[0]
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert [cells[0].strip("`") for cells in table] == list(rows)
    for name, samples, status, records, shown, license in table:
        name = name.strip("`")
        assert samples == f"{rows[name]['asked']:,}"
        assert status.startswith("read") == (name in read or name == "bridge-actions")
        assert shown == str(images.get(name, ""))
        sampled, good = read.get(name, (0, 0))
        assert records == (f"{good} of {sampled}" if sampled else "")
        if name in QA_PRESETS:
            known = QA_PRESETS[name].licence or "not confirmed"
            assert license.split(";")[0] == known and samples == f"{QA_PRESETS[name].count:,}"


def test_without_out_or_with_an_empty_sample_it_is_refused(
    three: list[dict], tmp_path: Path, capsys
):
    file = write_file(tmp_path / "m.yaml", three, tokenizer=TOKENS)
    assert main(["data", "mix", file]) == 2
    assert "give --out, or --dry-run" in capsys.readouterr().err
    with pytest.raises(RoboAlignError, match="give 1 or more"):
        preview_mix(file, at=(), most=0)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_large_file_is_sampled_from_end_to_end(tmp_path: Path, monkeypatch, suffix: str):
    draw = random.Random(0)
    found = [
        llava_record(f"{n}", f"{n}.jpg", "wie größ { ist " * draw.randint(1, 9), f'a "{n}"')
        for n in range(3000)
    ]
    path = tmp_path / f"qa{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in found))
    monkeypatch.setattr(sampling, "_WHOLE", 1000)
    monkeypatch.setattr(sampling, "_WINDOW", 16_000)
    sample = sampling.spread_records(path, LAYOUTS["llava"], 40)
    assert len(sample.records) == 40 and all(one in found for one in sample.records)
    assert not sample.exact and sample.total == pytest.approx(3000, rel=0.1)
    numbers = [int(one["id"]) for one in sample.records]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0 and numbers[-1] > 2900
    monkeypatch.undo()
    whole = sampling.spread_records(path, LAYOUTS["llava"], 4)
    assert whole == sampling.Sampled([found[n] for n in (0, 750, 1500, 2250)], 3000, True, 3000)


def test_a_large_file_of_another_layout_is_named(tmp_path: Path, monkeypatch):
    path = tmp_path / "qa.json"
    path.write_text(json.dumps([{"talk": "x" * 40} for _ in range(2000)]))
    monkeypatch.setattr(sampling, "_WHOLE", 1000)
    monkeypatch.setattr(sampling, "_WINDOW", 4000)
    (one,) = preview(settings({"name": "qa", "qa": str(path), "count": 5}), 10)
    assert not one.found or one.sampled == 0
    assert "no record with the field conversations in any of 8 places" in one.missing[0]
