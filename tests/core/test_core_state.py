"""State that the program wrote itself: damage is one message that names the file, and lost rows are seen."""

import json
from pathlib import Path

import pytest
from pydantic import Field

from roboalign.core.errors import RoboAlignError
from roboalign.core.state import State, check_digests, digests, read_records, read_state


class Note(State):
    name: str
    count: int = Field(ge=0)
    done: bool


WHOLE = {"name": "a", "count": 2, "done": True, "more": [1]}


def test_a_whole_record_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "note.json").write_text(json.dumps(WHOLE))
    assert read_state(tmp_path / "note.json", Note) == WHOLE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"done": "no"}, "done"),  # would be true as a Python value
        ({"done": 1}, "done"),
        ({"count": True}, "count"),
        ({"count": 2.5}, "count"),
        ({"count": -1}, "count"),
        ({"name": None}, "name"),
    ],
)
def test_a_value_of_another_type_names_file_and_field(
    tmp_path: Path, change: dict, field: str
) -> None:
    path = tmp_path / "note.json"
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(RoboAlignError) as caught:
        read_state(path, Note, fix="copy it again")
    assert str(path) in str(caught.value) and field in str(caught.value)
    assert "copy it again" in str(caught.value)


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps(WHOLE) + "\n" + json.dumps(WHOLE | {"done": "no"}) + "\n")
    with pytest.raises(RoboAlignError, match=r"record 2.*done"):
        read_records(path, Note)


def test_lost_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    (tmp_path / "metrics.json").write_text('{"loss": 1.5}')
    (tmp_path / "stage.json").write_text("{}")
    described = digests(tmp_path, leave_out=["stage.json"])
    assert (
        set(described) == {"rows.jsonl", "metrics.json"} and described["rows.jsonl"]["lines"] == 3
    )
    check_digests(tmp_path, described, "again")
    (tmp_path / "metrics.json").write_text('{"loss": 1.4}')
    with pytest.raises(RoboAlignError, match=r"metrics\.json: .*sha256 differs"):
        check_digests(tmp_path, described, "again")
    (tmp_path / "metrics.json").write_text('{"loss": 1.5}')
    lines.write_text('{"a": 1}\n{"a": 3}\n')
    with pytest.raises(RoboAlignError, match=r"rows\.jsonl: it has 2 records, and 3 were written"):
        check_digests(tmp_path, described, "again")
    lines.unlink()
    with pytest.raises(RoboAlignError, match=r"rows\.jsonl: the file is missing"):
        check_digests(tmp_path, described, "again")
