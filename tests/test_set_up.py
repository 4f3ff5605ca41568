"""The set-up of `make demo` and `make test`, tools/set_up.py."""

import threading
from pathlib import Path

import pytest

from tools import set_up


def test_second_set_up_of_a_folder_waits_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def second() -> None:
        with set_up.alone(tmp_path / "venv"):
            order.append("second")

    thread = threading.Thread(target=second)
    with set_up.alone(tmp_path / "venv"):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert "another set-up" in capsys.readouterr().out


def test_failure_releases_the_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(set_up.SetUpError), set_up.alone(tmp_path / "venv"):
        raise set_up.SetUpError("no room")
    with set_up.alone(tmp_path / "venv"):
        assert capsys.readouterr().out == ""


def test_other_folders_do_not_wait(tmp_path: Path) -> None:
    with set_up.alone(tmp_path / "one"), set_up.alone(tmp_path / "other"):
        assert {path.name for path in tmp_path.iterdir()} == {"one.lock", "other.lock"}
