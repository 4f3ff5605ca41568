"""`roboalign bench` from the command line: the table, the files, and one message for a fault."""

import json
from pathlib import Path

import pytest
from bench_models import script, small_model
from made_sets import write_sets

from roboalign.cli.main import main
from roboalign.core.files import read_json, read_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets and two models of other weights."""
    folder = tmp_path_factory.mktemp("bench")
    write_sets(folder / "sets")
    for name in ("one", "two"):
        small_model(folder / name / "model")
    return folder


def bench(place: Path, out: Path, *more: str, models=("one",), tasks=("mmstar",)) -> int:
    folders = [str(place / model / "model") for model in models]
    fixed = ["--tasks", *tasks, "--data", str(place / "sets"), "--out", str(out)]
    return main(["bench", *folders, *fixed, "--max-new-tokens", "8", *more])


def test_two_models_and_two_tasks(place, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    tasks = ("mmstar", "where2place")
    assert bench(place, out, "--controls", "text", models=("one", "two"), tasks=tasks) == 0
    text = capsys.readouterr().out
    assert "two minus one, same 8 items" in text and "no image" in text
    assert "protocol lmms-eval: lmms-eval 0.7.3, where2place" in text
    summary = read_json(out / "summary.json")
    for task in tasks:
        for model in ("one", "two"):
            rows = read_jsonl(out / model / task / "asked.jsonl")
            counted = summary["tasks"][task]["models"][model]["asked"]
            assert len(rows) == 8 == counted["score"]["n"]
            assert counted["score"]["value"] == sum(row["score"] for row in rows) / 8
            assert counted["unreadable"] == sum(row["reason"] != "ok" for row in rows)
    assert bench(place, out, "--controls", "text", models=("one", "two"), tasks=tasks) == 0
    assert capsys.readouterr().out == text


def test_json(place, tmp_path, capsys, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "B")
    assert bench(place, tmp_path / "out", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_json(tmp_path / "out" / "summary.json")
    score = printed["tasks"]["mmstar"]["models"]["one"]["asked"]["score"]
    assert (score["value"], score["n"]) == (0.25, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tasks", "mmstarr"], "there is no task 'mmstarr'. Available: mmstar, where2place"),
        (["--preset", "official"], "MMStar has no preset 'official'; it has lmms-eval, qwen"),
        (["--data", "/nowhere"], "--data /nowhere: no such file or folder"),
        (["--arm", "sft"], "only a run has arms and seeds"),
        (["--limit", "-1"], "`limit`: Input should be greater than or equal to 0"),
    ],
)
def test_one_message_for_a_wrong_option(place, tmp_path, capsys, change, message) -> None:
    assert bench(place, tmp_path / "out", *change) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split()) and said.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_files_of_another_kind(place, tmp_path, capsys) -> None:
    wrong = f"mmstar={place / 'sets' / 'where2place'}"
    assert bench(place, tmp_path / "out", "--data", wrong) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "it has no column `index`, `answer`, `category`, `l2_category`; it has image" in said
    empty = tmp_path / "empty"
    empty.mkdir()
    assert bench(place, tmp_path / "out2", "--data", f"mmstar={empty}") == 2
    assert "no file of the benchmark is here" in capsys.readouterr().err
    (empty / "x.parquet").write_bytes(b"PAR1 and more")
    assert bench(place, tmp_path / "out3", "--data", f"mmstar={empty}") == 2
    assert "not a readable parquet file" in capsys.readouterr().err


def test_two_models_of_one_name(place, tmp_path, capsys) -> None:
    assert bench(place, tmp_path / "out", models=("one", "one")) == 2
    assert "two models are called one" in capsys.readouterr().err
