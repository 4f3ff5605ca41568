"""The command: exit status, one message and no traceback for a fault of the input, nothing written before the check."""

import argparse
import errno
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roboalign import __version__
from roboalign.cli import doctor as checks
from roboalign.cli.main import STAGES, VERBS, _parser, main
from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.probe_features import ProbeSettings
from roboalign.run import graph, start
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
    error = re.sub(r"^\[run\] reading .*\n", "", error)  # said before the recipe is read
    assert error.startswith("error: ") and error.count("\n") == 2 and "Traceback" not in error
    assert error.splitlines()[1].startswith("  fix: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (
            ["comparee", "a"],
            "no verb `comparee`. Available: init, run, plan",
            "`roboalign compare`?",
        ),
        (["xyzzy"], "no verb `xyzzy`", "see roboalign --help"),
        (
            ["eval", "x.yaml", "--benchmark", "metaworld", "--out", "y"],
            "'x.yaml' is no address",
            "roboalign run RECIPE --until eval",
        ),
        (["probe", "x", "--phasess", "3"], "no option --phasess", "did you mean --phases?"),
        (["data", "mix", "x", "--out", "y", "--worker=3"], "no option --worker", "--workers?"),
        (["data", "inspct", "x"], "invalid choice: 'inspct'", "roboalign data --help"),
        (["run"], "required: recipe", "see roboalign run --help"),
        (["run", "a.yaml", "b.yaml"], "no argument b.yaml", "see roboalign --help"),
    ],
)
def test_a_wrong_word_is_two_lines_with_the_nearest_one(
    arguments: list[str], problem: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code  # type: ignore[assignment]
    first, second = capsys.readouterr().err.splitlines()
    assert status == 2 and first.startswith("error: roboalign") and problem in first
    assert second.startswith("  fix: ") and fix in second


def test_help_lists_the_verbs_and_hides_those_of_stages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for verb, text in VERBS.items():
        assert f"  {verb:<11} {text}\n" in listed
    words = {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
    assert not words & {*STAGES}
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"roboalign {__version__}\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_option_has_a_help_text_and_its_default_once() -> None:
    seen = 0
    for parser in parsers(_parser()):
        text = " ".join(parser.format_help().split())
        assert text.count("(default: ") <= len(parser._actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction | argparse._VersionAction):
                continue
            assert action.help and "None" not in action.help, (parser.prog, action.dest)
            assert "default" not in action.help.lower().replace("by default", ""), action.help
            if action.option_strings and action.default not in (None, False, [], "==SUPPRESS=="):
                assert f"(default: {action.default})" in text, (parser.prog, action.dest)
                seen += 1
    assert seen > 15


def test_the_help_does_not_import_torch() -> None:
    program = "import sys; from roboalign.cli.main import main; main([]); print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stdout.split())
    assert "roboalign.cli.main" in loaded and not loaded & {"torch", "numpy", "transformers"}


def test_settings_have_their_defaults_from_the_config() -> None:
    options = _parser("probe").parse_args(["probe", "runs/a"])
    given = {name: getattr(options, name) for name in ProbeSettings.model_fields}
    assert ProbeSettings(**given) == ProbeSettings()
    options = _parser("probe").parse_args(["probe", "runs/a", "--layers", "1", "2", "--k", "7"])
    assert options.layers == [1, 2] and options.k == 7


def test_every_hidden_verb_has_a_stage(recipe: Path) -> None:
    from roboalign.run.load import load_recipe

    given = load_recipe(recipe)
    run = pipeline.Run(given, recipe.parent, graph.plan_stages(given))
    for verb in STAGES:
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
    monkeypatch.setattr(start, "plan_stages", lambda recipe: stages)
    monkeypatch.setattr(pipeline, "limit_threads", lambda count: None)
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(recipe), "--until", "mix"]) == 0
    assert (tmp_path / "runs" / "mine" / "mix" / "stage.json").exists()
    assert main(["sft", str(recipe), "--out", str(tmp_path / "else")]) == 130
    assert "continues from here" in capsys.readouterr().err
    assert (tmp_path / "else" / "mix" / "stage.json").exists()
    assert not (tmp_path / "else" / "sft" / "stage.json").exists()


def test_a_fault_of_the_program_is_not_hidden(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(context: Context) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(start, "plan_stages", lambda recipe: [Stage("mix", work)])
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

    monkeypatch.setattr(start, "plan_stages", lambda recipe: [Stage("mix", work)])
    monkeypatch.setattr(pipeline, "limit_threads", lambda count: None)
    assert main(["mix", str(recipe), "--out", str(tmp_path / "out")]) == 2
    *_, problem, fix = capsys.readouterr().err.splitlines()
    assert problem == "error: mix/train.parquet: cannot be written (No space left on device)."
    assert fix.startswith("  fix: free space")


def test_doctor_names_each_check_and_fails_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise RoboAlignError("0.1 GB are free", fix="close other programs")

    monkeypatch.setattr(checks, "benchmark_checks", lambda asked, settings: {})
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
    recipe = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
    assert main(["plan", recipe, "--gpus", "2xH100"]) == 0
    assert "fits into" in capsys.readouterr().out
    assert main(["plan", recipe, "--gpus", "2xH999"]) == 2
    assert "--gpus" in capsys.readouterr().err
