"""`roboalign table`: from a run's folder and from published results, the same numbers."""

import json
from pathlib import Path

import pytest

from roboalign.cli.comparison.paper_runs import read_measured
from roboalign.cli.main import main
from roboalign.cli.table import column, tables
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, write_json, write_text
from roboalign.evaluate.success import success_table
from roboalign.run.load import dump_recipe
from roboalign.run.recipe import Recipe
from tools.publish import publish

PUBLISHED = Path(__file__).parents[2] / "docs" / "results"
EPISODES = {
    arm: [
        {
            "task": task,
            "seed": seed,
            "success": (seed + shift) % 3 == 0,
            "steps": 9,
            "crash": None,
            "run_seed": run,
        }
        for run in (0, 1)
        for task in ("door-lock-v3", "door-unlock-v3")
        for seed in range(5)
    ]
    for arm, shift in (("base", 0), ("sft", 1), ("action-sft", 2))
}


def write_run(folder: Path, *, published: bool) -> Path:
    recipe = Recipe.model_validate(
        {
            "name": "mine",
            "seeds": (0, 1),
            "arms": tuple(EPISODES),
            "collect": {"downstream_tasks": ("door-lock-v3", "door-unlock-v3")},
        }
    )
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    summary = {
        "environment": {"model": "1.95 million parameters"},
        "success": success_table(EPISODES, []),
    }
    write_json(folder / ("summary.json" if published else "report/summary.json"), summary)
    for arm, rows in EPISODES.items():
        for seed in (0, 1):
            where = (
                "seed-{}-episodes-{}.jsonl"
                if published
                else "seed-{}/eval/rollouts/{}/episodes.jsonl"
            )
            name = where.format(seed, arm)
            write_text(
                folder / name,
                "".join(json.dumps(row) + "\n" for row in rows if row["run_seed"] == seed),
            )
    return folder


def test_both_layouts_give_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / name, published=name == "kept") for name in ("run", "kept")]
    assert main(["table", *map(str, folders), "--metric", "libero-avg", "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert one == two and one["run"] == "mine"
    rows = {row["arm"]: row for row in one["rows"]}
    assert rows["sft"]["measured"]["n"] == 20 and rows["sft"]["training_seeds"] == [0, 1]
    # of seeds 0 to 4 the base solves 0 and 3, SFT 2 alone: 8 and 4 of 20 episodes
    assert (
        rows["sft"]["minus_base"]["value"] == pytest.approx(-0.2)
        and rows["sft"]["minus_base"]["n"] == 20
    )
    assert rows["roboalign"]["measured"] is None and rows["roboalign"]["paper"] == 86.8
    assert any("2 tasks of metaworld" in sentence for sentence in one["not_comparable"])
    assert main(["table", str(folders[0])]) == 0
    assert "RoboAlign" in capsys.readouterr().out


def test_published_baselines_come_with_the_papers_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", published=False)
    for name in ("index.html", "table.txt"):
        write_text(run / "report" / name, "x")
    write_json(run / "collect" / "experts.json", {})
    summary = read_json(run / "report" / "summary.json")
    write_json(run / "report" / "summary.json", {**summary, "arms": {}})
    lines = publish(run, tmp_path / "kept").splitlines()
    start = lines.index(
        "| backbone | paper: LIBERO, average of the four suites | paper, minus SFT | measured success "
        "| minus SFT, points |"
    )
    rows = {
        line.split(" | ")[0].removeprefix("| "): line
        for line in lines[start + 2 :]
        if line.startswith("|")
    }
    assert rows["Base"].startswith("| Base | 73.9% | −4.8 | 8/20 = 40.0% (21.9 to 61.3) | ")
    assert "not run" in rows["RoboAlign"] and rows["SFT"].endswith(" | – |")
    assert any(line.startswith("- Another benchmark") for line in lines)
    assert json.loads(column([tmp_path / "kept"], "libero-avg", "json"))[0]["run"] == "mine"


def test_records_that_lack_a_training_seed_give_no_difference(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", published=False)
    (folder / "seed-1/eval/rollouts/base/episodes.jsonl").unlink()
    found = read_measured(folder)
    assert set(found.episodes) == {"sft", "action-sft"} and set(found.success) == set(EPISODES)
    (row,) = (
        row
        for row in json.loads(column([folder], "libero-avg", "json"))[0]["rows"]
        if row["arm"] == "sft"
    )
    assert row["minus_base"] is None and row["measured"]["n"] == 20


@pytest.mark.parametrize("name", sorted(path.name for path in PUBLISHED.iterdir() if path.is_dir()))
def test_published_results_can_be_read(name: str) -> None:
    (comparison,) = json.loads(column([PUBLISHED / name], "libero-long", "json"))
    rows = {row["arm"]: row for row in comparison["rows"]}
    assert rows["roboalign"]["measured"]["n"] and rows["roboalign"]["minus_sft"]["n"]


def test_what_cannot_be_shown_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match=r"no column `libero-average`.*libero-avg"):
        column([tmp_path], "libero-average")
    with pytest.raises(
        RoboAlignError, match=r"summary.json: the file does not exist Fix: give a run's folder"
    ):
        column([tmp_path], "libero-avg")
    folder = write_run(tmp_path / "run", published=False)
    write_json(folder / "report" / "summary.json", {"success": None})
    with pytest.raises(RoboAlignError, match="no success rates"):
        column([folder], "libero-avg")
    write_text(folder / "report" / "summary.json", '{"success": {"arms"')
    with pytest.raises(RoboAlignError, match=r"report/summary\.json"):
        column([folder], "libero-avg")


def test_the_papers_tables_hold_runs_of_one_recipe_on_several_suites() -> None:
    found = json.loads(
        tables([PUBLISHED / "libero-tiny", PUBLISHED / "libero-tiny-spatial"], "json")
    )
    (libero,) = found["tables"]
    assert libero["table"] == "libero" and found["others"] == []
    rows = {(row["arm"], row["from"]): row["cells"] for row in libero["rows"]}
    assert [cell["value"] for cell in rows["roboalign", "paper"]] == [93.8, 96.0, 87.2, 70.0, 86.8]
    spatial, objects, *others = rows["roboalign", "libero-tiny"]
    # 28 and 73 of 100: Wilson's intervals by scipy's binomtest
    assert objects == pytest.approx(
        {"value": 73.0, "low": 63.568, "high": 80.731, "n": 100}, abs=1e-3
    )
    assert spatial == pytest.approx(
        {"value": 28.0, "low": 20.139, "high": 37.488, "n": 100}, abs=1e-3
    )
    assert others == [None, None, None]
    assert any("10 episodes a task and arm" in one for one in libero["differs"])
    assert any("another model" in one for one in libero["differs"])


def test_tables_fit_a_terminal_and_a_paper(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(PUBLISHED / "libero-tiny")
    assert main(["table", run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("not measured: CALVIN") for line in lines)
    assert main(["table", run, "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| RoboAlign | paper | 93.8 | 96.0 | 87.2 | 70.0 | 86.8 |" in printed
    assert "| RoboAlign | libero-tiny | – | 73.0 64–81 n = 100 | – | – | – |" in printed


def test_the_same_task_twice_is_refused() -> None:
    run = PUBLISHED / "libero-tiny"
    with pytest.raises(RoboAlignError, match="two runs are called libero-tiny, and both measured"):
        tables([run, run])


def test_a_run_on_its_own_suite_is_on_the_papers_benchmark() -> None:
    said = column([PUBLISHED / "libero-tiny"], "libero-object")
    assert "Another benchmark" not in said and "Another model" in said
    assert "Another benchmark" in column([PUBLISHED / "libero-tiny"], "libero-spatial")


def test_chains_of_calvin_are_a_row(tmp_path: Path) -> None:
    """Of four chains 0, 1, 3 and 5 tasks are solved: three have 1, two have 3, one has 5; 9 / 4 in the mean."""
    solved = (0, 1, 3, 5)
    records = [
        {
            "task": "chains",
            "seed": seed,
            "success": count == 5,
            "steps": 9,
            "crash": None,
            "progress": count,
        }
        for seed, count in enumerate(solved)
    ]
    recipe = Recipe.model_validate(
        {
            "name": "long",
            "arms": ("sft",),
            "collect": {"benchmark": "calvin", "downstream": {"first_seed": 1000}},
        }
    )
    write_text(tmp_path / "recipe.yaml", dump_recipe(recipe))
    write_json(
        tmp_path / "report" / "summary.json",
        {"environment": {"model": "tiny"}, "success": success_table({"sft": records}, [])},
    )
    (calvin,) = json.loads(tables([tmp_path], "json"))["tables"]
    rows = {(row["arm"], row["from"]): row["cells"] for row in calvin["rows"]}
    assert [cell["value"] for cell in rows["sft", "long"]] == [75, 50, 50, 25, 25, 2.25]
    assert [cell["value"] for cell in rows["sft", "paper"]] == [74.6, 49.6, 31.5, 21.2, 12.2, 1.89]
    assert any("4 chains; the paper has 1000" in one for one in calvin["differs"])
