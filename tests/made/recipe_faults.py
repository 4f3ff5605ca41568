"""The one message of a recipe that is refused."""

from pathlib import Path

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.run.load import load_recipe


def fault(tmp_path: Path, text: str, *overrides: str) -> RoboAlignError:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RoboAlignError) as error:
        load_recipe(path, overrides)
    assert "\n" not in str(error.value)
    assert error.value.where == str(path) or error.value.where.startswith("--set ")
    return error.value
