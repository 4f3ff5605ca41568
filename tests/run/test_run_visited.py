"""Stage `visited`: the seeds that it refuses, and held-out episodes without a labelled state."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage_run import recipe

from roboalign.conversations.conversation import Conversation, Turn, write_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.run.stages import visited as stage
from roboalign.sim.registry import FIRST_EVALUATION_SEED


def test_seeds_that_only_later_commands_measure_are_refused() -> None:
    """The run measures downstream tasks alone; `think-curve` measures alignment tasks too."""
    settings = recipe(visited={"first_seed": FIRST_EVALUATION_SEED - 9})  # 8 + 2 episodes
    with pytest.raises(RoboAlignError, match=f"seed {FIRST_EVALUATION_SEED} is one of those"):
        stage._refuse_known(Path("nowhere"), settings, None)  # type: ignore[arg-type]


def test_no_labelled_heldout_state_ends_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the run would end hours later, at the first arm that is asked them."""
    turn = Turn("action", "action", "think", "go", "<think></think>", "")
    one = Conversation("a", "e", 0, "t", (), (turn,), (), (), "go")

    def written(path: Path, *rest: Any) -> None:
        write_conversations(path, [] if path.suffix == ".heldout" else [one])

    for name, value in {
        "alignment_benchmark": lambda recipe: None,
        "_refuse_known": lambda *given: None,
        "run_action_tokens": lambda folder: None,
        "_acting": lambda *given: None,
        "_drive": lambda *given: [],
        "_write": written,
    }.items():
        monkeypatch.setattr(stage, name, value)
    context: Any = SimpleNamespace(
        recipe=recipe(), run_dir=tmp_path, folder=tmp_path, name="visited"
    )
    with pytest.raises(RoboAlignError, match="no state of a held-out episode") as caught:
        stage.visited(context)
    assert "visited.heldout_per_task" in (caught.value.fix or "")
