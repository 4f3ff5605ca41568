"""How errors print, at every entry point."""

import pytest

from roboalign.core.errors import RoboAlignError, format_error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            RoboAlignError("no such key", where="a.yaml, rl", fix="remove it"),
            "error: a.yaml, rl: no such key.\n  fix: remove it",
        ),
        (
            RoboAlignError("it is cut.", fix="get it again"),
            "error: it is cut.\n  fix: get it again",
        ),
        (RoboAlignError("unknown `x`", where="b"), "error: b: unknown `x`."),
        (RoboAlignError("why?"), "error: why?"),
    ],
)
def test_an_error_is_printed_on_two_lines(error: RoboAlignError, text: str) -> None:
    assert format_error(error) == text


def test_str_of_an_error_is_one_line_for_logs() -> None:
    error = RoboAlignError("no such key", where="a.yaml", fix="remove it")
    assert str(error) == "a.yaml: no such key Fix: remove it"
