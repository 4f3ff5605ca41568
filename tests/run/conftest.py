"""Fixtures of the stages' tests."""

from pathlib import Path

import pytest
from stage_run import do, recipe, write_episodes

from roboalign.run.graph import plan_stages


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything up to SFT is done. Tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    for part, seeds in (("align", range(6)), ("downstream", range(10, 13))):
        write_episodes(folder / "collect" / part, seeds)
    stages = {stage.name: stage for stage in plan_stages(recipe())}
    for name in ("tokenizer", "mix", "base", "seed-0/sft"):
        do(stages, folder, name, recipe())
    return folder
