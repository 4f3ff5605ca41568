"""Atomic writes, jsonl files that a kill cut short, hashes."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import (
    append_jsonl,
    as_message,
    atomic_path,
    check_source,
    hash_file,
    hash_tree,
    locked,
    no_room,
    read_json,
    read_jsonl,
    write_json,
    write_text,
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded"),
        (OSError(errno.EACCES, "No space left on device"), ""),
        # As safetensors 0.8 and torch 2.13 say it of a full tmpfs.
        (
            RuntimeError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
            "No space left on",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            "not be written to",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "not be written to its end"),
        (RuntimeError("Connection closed by peer"), ""),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, said: str) -> None:
    assert said in no_room(error) and bool(said) == bool(no_room(error))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError, match="full disk"), atomic_path(target) as temporary:
        temporary.write_text("half")
        assert temporary.parent == target.parent  # a rename within one folder is atomic
        raise RuntimeError("full disk")
    assert read_json(target) == {"a": 1}
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_replaces_a_folder_or_leaves_it_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_path(target) as folder:
            folder.mkdir()
            (folder / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as folder:
        folder.mkdir()
        (folder / "third").write_text("")
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_json_is_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_jsonl(tmp_path / "a.jsonl", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_reading_names_the_file_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(RoboAlignError, match="does not exist") as missing:
        read_json(path, fix="roboalign mix")
    assert missing.value.where == str(path) and missing.value.fix == "roboalign mix"
    path.write_text('{"a": ')
    with pytest.raises(RoboAlignError, match="not valid JSON") as broken:
        read_json(path)
    assert str(path) in str(broken.value)


@given(cut=st.integers(0, 200))
def test_wherever_a_kill_cuts_a_jsonl_file_reading_and_appending_agree(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    records = [{"step": step, "text": "ä\u2028\n" * step} for step in range(4)]
    for record in records:
        append_jsonl(path, record)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = read_jsonl(path)
    assert kept == records[: len(kept)]
    assert len(kept) == path.read_bytes().count(b"\n")
    append_jsonl(path, {"step": 9})
    assert read_jsonl(path) == [*kept, {"step": 9}]
    assert all(json.loads(line) for line in path.read_text().split("\n")[:-1])


def test_a_broken_line_that_is_not_the_last_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_text(path, '{"a": 1}\n\n{"a": \n{"a": 3}\n')
    with pytest.raises(RoboAlignError, match="not valid JSON") as error:
        read_jsonl(path)
    assert error.value.where == f"{path}, line 3"
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_hashes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "a.bin").write_bytes(content)
    assert hash_file(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("b")
    before = hash_tree(tmp_path)
    assert hash_tree(tmp_path, keep=lambda path: path.suffix != ".txt") != before
    (tmp_path / "sub" / "b.txt").rename(tmp_path / "sub" / "c.txt")
    assert hash_tree(tmp_path) != before
    (tmp_path / "sub" / "c.txt").rename(tmp_path / "sub" / "b.txt")
    assert hash_tree(tmp_path) == before


def test_a_folder_is_held_by_one_process_and_freed_when_that_is_killed(tmp_path: Path) -> None:
    program = f"import time; from roboalign.core.files import locked\nwith locked({str(tmp_path / 'run')!r}):\n"
    program += "    print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(RoboAlignError, match="another command is at work in this folder"),
        locked(tmp_path / "run"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_link_that_leads_to_itself_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").symlink_to("video.mp4")
    with pytest.raises(RoboAlignError) as caught:
        check_source(tmp_path / "video.mp4", tmp_path)
    assert caught.value.where == str(tmp_path / "video.mp4")


@pytest.mark.parametrize(
    ("exists", "may", "said"),
    [
        (False, (), "cannot be written"),
        (True, (os.R_OK,), "cannot be written"),
        (True, (os.W_OK,), "cannot be read"),
        (True, (), "cannot be opened"),
    ],
)
def test_what_permissions_refuse_is_said_by_what_they_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, may: tuple[int, ...], said: str
) -> None:
    path = tmp_path / "recipe.yaml"
    if exists:
        path.write_text("")
    monkeypatch.setattr(os, "access", lambda _, mode: mode in may)
    found = str(as_message(PermissionError(errno.EACCES, "Permission denied", str(path))))
    assert f"{path}: {said} (Permission denied)" in found
