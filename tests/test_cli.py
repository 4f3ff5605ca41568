"""The command: exit status, one message and no traceback for a fault of the input, nothing written before the check."""

import errno
from pathlib import Path
from typing import Any

import pytest

from roboalign.cli import doctor as checks
from roboalign.cli.main import VERBS, main
from roboalign.core.errors import RoboAlignError
from roboalign.run import graph
from roboalign.run import scheduler as pipeline
from roboalign.run.stage import Context, Stage


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nparallel: 1\nbackbone: {source: train}\n")
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "none.yaml"],
        ["run", "{recipe}", "--set", "sft.max_step=3"],
        ["run", "{recipe}", "--set", "mix.rl_share=0.5"],
        ["run", "{recipe}", "--set", "arms=[sft"],
        ["rl", "{recipe}", "--set", "arms=[sft]"],
        ["run", "{recipe}", "--out", "{recipe}"],
        ["run", "{recipe}", "--set", "backbone.source=no/such/folder"],
    ],
)
def test_a_fault_of_the_input_is_one_message_and_status_2(
    arguments: list[str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(recipe=recipe) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 2 and "Traceback" not in error
    assert error.splitlines()[1].startswith("  fix: ")
    assert not (tmp_path / "runs").exists()


def test_a_verb_that_does_not_exist_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "x.yaml"])
    assert stopped.value.code == 2 and "usage: roboalign" in capsys.readouterr().err


def test_every_verb_has_a_stage_and_every_stage_a_verb(recipe: Path) -> None:
    from roboalign.run.recipe import load_recipe

    given = load_recipe(recipe)
    run = pipeline.Run(given, recipe.parent, graph.plan_stages(given))
    for verb in set(VERBS) - {"run", "distill"}:
        assert run.select(verb)
    assert run.select() == list(run.stages) == run.select("report")
    distill = pipeline.Run(given, recipe.parent, graph.distill_stages(given))
    assert distill.select("distill") == list(distill.stages)


def test_run_goes_to_the_runs_folder_and_stops_with_130_when_interrupted(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(context: Context) -> dict[str, Any]:
        if context.name == "sft":
            raise KeyboardInterrupt
        return {}

    stages = [Stage("mix", work), Stage("sft", work, ("mix",))]
    monkeypatch.setattr(graph, "plan_stages", lambda recipe: stages)
    monkeypatch.setattr(pipeline, "limit_threads", lambda count: None)
    monkeypatch.chdir(tmp_path)
    assert main(["mix", str(recipe)]) == 0
    assert (tmp_path / "runs" / "mine" / "mix" / "stage.json").exists()
    assert main(["sft", str(recipe), "--out", str(tmp_path / "else")]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert (tmp_path / "else" / "mix" / "stage.json").exists()
    assert not (tmp_path / "else" / "sft" / "stage.json").exists()


def test_a_fault_of_the_program_is_not_hidden(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(context: Context) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(graph, "plan_stages", lambda recipe: [Stage("mix", work)])
    monkeypatch.setattr(pipeline, "limit_threads", lambda count: None)
    with pytest.raises(ZeroDivisionError):
        main(["mix", str(recipe), "--out", str(tmp_path / "out")])


def test_a_full_disk_is_one_message(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(context: Context) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", "mix/train.parquet")

    monkeypatch.setattr(graph, "plan_stages", lambda recipe: [Stage("mix", work)])
    monkeypatch.setattr(pipeline, "limit_threads", lambda count: None)
    assert main(["mix", str(recipe), "--out", str(tmp_path / "out")]) == 2
    problem, fix = capsys.readouterr().err.splitlines()
    assert problem == "error: mix/train.parquet: cannot be written (No space left on device)."
    assert fix.startswith("  fix: free space")


def test_doctor_names_each_check_and_fails_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise RoboAlignError("0.1 GB are free", fix="close other programs")

    monkeypatch.setattr(checks, "CHECKS", {"python": lambda: "3.11", "memory": lambda: "8 GB"})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok   python: 3.11\nok   memory: 8 GB\n"
    monkeypatch.setattr(checks, "CHECKS", {"python": lambda: "3.11", "memory": broken})
    assert main(["doctor", "--quiet"]) == 2
    assert capsys.readouterr().out == "FAIL memory: 0.1 GB are free.\n  fix: close other programs\n"


@pytest.mark.parametrize("name", ["python", "packages", "device"])
def test_checks_that_hold_on_every_machine_that_runs_the_tests(name: str) -> None:
    assert checks.CHECKS[name]()


def test_checks_that_compare_with_a_limit_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("memory", "MEMORY_NEEDED_GB"), ("disk", "DISK_NEEDED_GB")):
        monkeypatch.setattr(checks, limit, 1e9)
        with pytest.raises(RoboAlignError, match="free"):
            checks.CHECKS[name]()
        monkeypatch.setattr(checks, limit, 0.0)
        assert "free" in checks.CHECKS[name]()


def test_an_impossible_setting_of_the_probe_is_one_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["probe", "runs/none", "--phases", "1"]) == 2
    assert "--phases" in capsys.readouterr().err


def test_compare_names_the_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path / "b")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_plan_prints_what_fits_and_refuses_a_gpu_that_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = str(Path(__file__).parents[1] / "recipes" / "quickstart.yaml")
    assert main(["plan", recipe, "--gpus", "2xH100"]) == 0
    assert "fits into" in capsys.readouterr().out
    assert main(["plan", recipe, "--gpus", "2xH999"]) == 2
    assert "--gpus" in capsys.readouterr().err
