"""What of a run is kept, and the table that a README shows."""

import json
from pathlib import Path

import pytest
from PIL import Image

from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.run.published import NOT_PUBLISHED, read_published, write_published
from tools.publish import publish

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PUBLISHED = sorted(path for path in RESULTS.iterdir() if path.is_dir())


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": 10}


def finished_run(folder: Path) -> Path:
    direct = {"prefix": estimate(0.3, 0.25, 0.35), "l1_all": estimate(0.2, 0.1, 0.3)}
    metrics = {
        "vqa": {"direct": {"accuracy": estimate(0.5, 0.4, 0.6)}},
        "actions": {"direct": direct},
    }
    overall = {"successes": 3, "n": 10, "rate": 0.3, "low": 0.108, "high": 0.603}
    summary = {"arms": {"sft": metrics}, "success": {"arms": {"sft": {"overall": overall}}}}
    texts = {
        "report/index.html": "page",
        "report/table.txt": "table",
        "report/summary.json": json.dumps(summary),
        "recipe.yaml": "name: a",
        "collect/experts.json": "{}",
        "seed-4/rl/metrics.jsonl": "{}\n",
        "seed-4/language-rl/metrics.jsonl": "{}\n",
        "seed-4/eval/rollouts/sft.outdated-1/episodes.jsonl": "{}\n",
        "seed-4/eval/rollouts/sft/protocol.json": "{}",
        "seed-4/eval/rollouts/sft/episodes.jsonl": "{}\n{}\n",
        "seed-4/rl/model/model.safetensors": "large",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_records_are_copied_and_nothing_large(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "of-an-earlier-run").touch()
    table = publish(finished_run(tmp_path / "run"), tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "summary.json",
        "table.txt",
        "recipe.yaml",
        "experts.json",
        "seed-4-rl-metrics.jsonl",
        "seed-4-language-rl-metrics.jsonl",
        "seed-4-episodes-sft.jsonl",
        "protocol.json",
    }
    assert (tmp_path / "kept" / "seed-4-episodes-sft.jsonl").read_text() == "{}\n{}\n"
    row = "| SFT | 3/10 = 30% (11 to 60) | 50.0% (40.0–60.0) | 0.300 (0.250–0.350) | – | – | 0.200 (0.100–0.300) | – |"
    assert table.splitlines()[0].startswith("| backbone | success, 10 episodes | VQA, direct |")
    assert table.splitlines()[2:] == [row]


def test_a_run_without_a_report_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        RoboAlignError, match=r"summary.json: the file does not exist Fix: roboalign report RECIPE"
    ):
        publish(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_results_are_records_and_one_picture(folder: Path) -> None:
    run = read_published(folder)
    overall = json.loads((folder / "summary.json").read_text())["success"]["arms"]
    assert {arm.name for arm in run.arms} == set(overall)
    assert run.curves and all(curve.stage == "rl" and curve.records for curve in run.curves)
    size = run.environment["model"].split(" parameters")[0]
    assert any(f"The backbone has {size} parameters" in note for note in run.notes)
    assert not list(folder.glob("*.html"))
    picture = folder / "report.png"
    with Image.open(picture) as opened:
        assert opened.width == 1200 and picture.stat().st_size < 300_000


def test_the_page_of_published_results_has_their_numbers_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(RESULTS / "quickstart"), "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert "Success, %: Base 70.0% (54.6–81.9)" in text and "Reward: seed 0 from 0.249" in text
    sections = {part.split('"')[0]: part for part in text.split('<section id="')[1:]}
    absent = {name for name, part in sections.items() if NOT_PUBLISHED in part}
    assert absent == {"samples", "videos", "curves", "data", "cost"}
    assert "  align_tasks:" in sections["settings"] and "trackers" in sections["settings"]


def test_a_page_shows_the_settings_that_a_run_had_then(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert "trackers" not in (RESULTS / "metaworld" / "recipe.yaml").read_text()
    assert main(["report", str(RESULTS / "metaworld"), "--out", str(page)]) == 0
    settings = page.read_text().split('<section id="settings"')[1]
    assert "  align_tasks:" in settings and "trackers" not in settings


def test_a_page_is_a_file_and_a_summary_is_whole(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match=r"one HTML file Fix: --out page.html"):
        write_published(RESULTS / "quickstart", tmp_path)
    (tmp_path / "recipe.yaml").write_text((RESULTS / "quickstart" / "recipe.yaml").read_text())
    (tmp_path / "summary.json").write_text('{"success": {}}')
    with pytest.raises(RoboAlignError, match=r"summary.json: it lacks one of environment"):
        read_published(tmp_path)
