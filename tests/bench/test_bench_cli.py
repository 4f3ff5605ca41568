"""`roboalign bench` from the command line: the table, the files, and one message for a fault."""

import json
import shutil
from pathlib import Path

import pytest
from bench_models import script, small_model
from hub_stand_in import Repository, served, used
from made_sets import write_sets

from roboalign.cli.bench import models_of
from roboalign.cli.main import main
from roboalign.core.files import read_json, read_jsonl, write_text
from roboalign.run.load import dump_recipe
from roboalign.run.recipe import Recipe


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
    blind = summary["tasks"]["mmstar"]["models"]["one"]["text"]
    assert blind["minus_asked"]["n"] == 8 and "no image minus as asked" in text
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
        (
            ["--tasks", "mmstarr"],
            "there is no task 'mmstarr'. Available: mmstar, blink_relative_depth",
        ),
        (["--preset", "official"], "MMStar has no preset 'official'; it has lmms-eval, qwen"),
        (["--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["--data", "erqa=/x"], "--data erqa=/x: erqa is not asked"),
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


def test_a_data_set_of_the_hub(place, tmp_path, capsys, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "B")
    files = Repository.of(place / "sets" / "cv_bench")
    files.files |= {"train.parquet": b"not wanted", "code.py": b"never fetched"}
    with served() as hub, used(hub, tmp_path, monkeypatch):
        hub.repositories["dataset", "nyu-visionx/CV-Bench"] = files
        folder = str(place / "one" / "model")
        out = ["--out", str(tmp_path / "out")]
        assert main(["bench", folder, "--tasks", "cv_bench", *out]) == 0
        assert hub.files_asked() == {"test_2d.parquet", "test_3d.parquet"}
        assert "half ADE20K and COCO" in capsys.readouterr().out
        assert main(["bench", folder, "--tasks", "sat", *out]) == 2
    assert "nv-njb/SAT" in capsys.readouterr().err


def test_compare_pairs_two_folders_or_refuses(place, tmp_path, capsys, monkeypatch) -> None:
    outs = {name: tmp_path / name for name in ("one", "two", "other", "less")}
    script(monkeypatch, lambda question, images: "A")
    assert bench(place, outs["one"]) == 0
    replies = iter(["A", "B", "C", "A", "A", "A", "D", "D"])  # answers: A B C D A B C D
    script(monkeypatch, lambda question, images: next(replies))
    assert bench(place, outs["two"], models=("two",)) == 0
    script(monkeypatch, lambda question, images: "A")
    assert bench(place, outs["other"], "--preset", "qwen3-vl") == 0
    assert bench(place, outs["less"], "--limit", "4") == 0
    capsys.readouterr()
    assert main(["compare", str(outs["one"]), str(outs["two"]), "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)["tasks"]["mmstar"]
    # A alone is right twice; the other is right on items 0, 1, 2, 4 and 7
    assert (pair["n"], pair["only_before"], pair["only_after"]) == (8, 0, 3)
    assert pair["value"] == 3 / 8 and pair["p"] == 0.25
    assert main(["compare", str(outs["one"]), str(outs["two"] / "two")]) == 0
    assert "mmstar: after minus before, same 8 items: +37.5 points" in capsys.readouterr().out
    assert main(["compare", str(outs["one"]), str(outs["other"])]) == 2
    assert "`protocol.source` is 'lmms-eval 0.7.3, mmstar' and" in capsys.readouterr().err
    assert main(["compare", str(outs["one"]), str(outs["less"])]) == 2
    assert "`items` is 8 and 4" in capsys.readouterr().err
    assert main(["compare", str(outs["one"]), str(outs["one"])]) == 2
    capsys.readouterr()
    for name in ("one", "two"):  # both killed after the same items
        replies_of = outs[name] / name / "mmstar" / "asked.jsonl"
        lines = replies_of.read_bytes().splitlines(keepends=True)
        replies_of.write_bytes(b"".join(lines[:3]))
    assert main(["compare", str(outs["one"]), str(outs["two"])]) == 2
    assert "3 of 8 items are answered" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["model", ".", ".."])
def test_a_model_has_the_name_of_its_folder(place, tmp_path, monkeypatch, given) -> None:
    """Not "" or "..", whose replies would go next to --out or above it."""
    starts = {"model": "one", ".": "one/model", "..": "one/model/inner"}
    (place / "one/model/inner").mkdir(exist_ok=True)
    monkeypatch.chdir(place / starts[given])
    [model] = models_of([given], [], None)
    assert model.name == "one"


def test_a_run_stands_for_its_arms(place, tmp_path, capsys, monkeypatch) -> None:
    run = tmp_path / "run"
    recipe = Recipe.model_validate(
        {"name": "mine", "seeds": (3,), "arms": ("base", "sft", "roboalign")}
    )
    write_text(run / "recipe.yaml", dump_recipe(recipe))
    for stage, model in (("base", "one"), ("seed-3/sft", "one"), ("seed-3/rl", "two")):
        shutil.copytree(place / model / "model", run / stage / "model")
        write_text(run / stage / "stage.json", "{}")
    arguments = [
        "bench",
        str(run),
        "--tasks",
        "mmstar",
        "--data",
        str(place / "sets"),
        "--max-new-tokens",
        "4",
    ]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["models"]) == ["base", "sft", "roboalign"]
    pairs = summary["tasks"]["mmstar"]["pairs"]
    assert [(pair["before"], pair["after"]) for pair in pairs] == [
        ("base", "sft"),
        ("base", "roboalign"),
    ]
    assert pairs[0]["value"] == 0 and pairs[0]["p"] == 1.0
    assert main(["table", str(tmp_path / "out"), "--json"]) == 0
    (filled,) = json.loads(capsys.readouterr().out)["tables"]
    rows = {(row["arm"], row["from"]): row["cells"][0] for row in filled["rows"]}
    score = summary["tasks"]["mmstar"]["models"]["roboalign"]["asked"]["score"]
    assert rows["roboalign", "paper"] == {"value": 62.8}
    assert rows["roboalign", "out"]["value"] == 100 * score["value"] and score["n"] == 8
    assert main([*arguments, "--out", str(tmp_path / "o2"), "--arm", "sft", "--seed", "3"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "o3"), "--seed", "4"]) == 2
    assert "no training seed 4" in capsys.readouterr().err
    (run / "seed-3/rl/stage.json").unlink()
    assert main([*arguments, "--out", str(tmp_path / "o4")]) == 2
    assert "is not done" in capsys.readouterr().err
