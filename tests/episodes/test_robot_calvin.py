"""CALVIN: annotated stretches become episodes, the pickled annotations cannot run code, and faults are named."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from calvin_sets import SENTENCES, SPANS, TASKS, annotate, record, step_arrays, step_path
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.core.processes import within
from roboalign.episodes.episode import Episode, content_id
from roboalign.episodes.formats.calvin import ANNOTATIONS, PARTS, read_calvin
from roboalign.episodes.formats.plain_pickle import read_parts


@pytest.fixture
def split(tmp_path) -> Path:
    folder = tmp_path / "task_D_D" / "training"
    folder.mkdir(parents=True)
    for step in range(3, 13):
        np.savez_compressed(step_path(folder, step), **step_arrays(step))
    annotate(folder, record())
    np.save(folder / "ep_start_end_ids.npy", np.array([[3, 9], [12, 12]]))
    return folder


# What is read ---------------------------------------------------------------------------------------------------------


def test_one_episode_for_each_annotation(split):
    episodes = list(read_calvin(split))
    assert [len(episode) for episode in episodes] == [4, 5, 1]  # both ends belong to it
    second = episodes[1]
    assert second.episode_id == content_id("task_D_D/training/annotation-00001", second.actions)
    assert (second.task, second.instruction, second.fps) == (
        "push_into_drawer",
        "push the button",
        30.0,
    )
    rows = [step_arrays(step) for step in range(5, 10)]
    np.testing.assert_array_equal(second.actions, np.float32([row["rel_actions"] for row in rows]))
    np.testing.assert_array_equal(second.state, np.float32([row["robot_obs"] for row in rows]))
    assert sorted(second.cameras) == ["rgb_gripper", "rgb_static"]
    assert (second.cameras["rgb_static"].width, second.cameras["rgb_static"].height) == (6, 4)
    for t, row in enumerate(rows):
        np.testing.assert_array_equal(second.frame("rgb_gripper", t), row["rgb_gripper"])
    (absolute, *_) = read_calvin(split, actions="absolute")
    np.testing.assert_array_equal(absolute.actions[0], np.float32(step_arrays(3)["actions"]))


def test_frames_are_read_when_asked_for_and_episodes_can_be_sent_to_workers(split):
    episode = next(read_calvin(split))
    frame = np.full((4, 6, 3), 9, np.uint8)
    np.savez(step_path(split, 4), **step_arrays(4) | {"rgb_static": frame})
    np.testing.assert_array_equal(episode.frame("rgb_static", 1), frame)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(episode)).frame("rgb_static", 1), frame)


def test_spans_and_sentences_as_arrays(split):
    annotate(split, record(np.array(SPANS), np.array(SENTENCES), np.array(TASKS)))
    assert [episode.instruction for episode in read_calvin(split)] == SENTENCES


# The pickle -----------------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return (os.system, ("echo this ran > ran.txt",))


def test_a_pickle_that_would_run_code_is_refused_by_name(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    annotate(split, record() | {"more": Harmful()})
    with pytest.raises(RoboAlignError, match=r"posix\.system, which is not data") as caught:
        read_calvin(split)
    assert str(split / ANNOTATIONS) in caught.value.where and not (tmp_path / "ran.txt").exists()
    assert (
        np.load(split / ANNOTATIONS, allow_pickle=True).item() and (tmp_path / "ran.txt").exists()
    )  # it would have


@pytest.mark.parametrize(
    "value", [np.ndarray, np.load, Path("x"), complex(1), {1}, len, np.random.default_rng()]
)
def test_anything_but_arrays_and_plain_values_is_refused(split, value):
    annotate(split, {"x": [value]})
    with pytest.raises(ValueError, match="which is not data"):
        read_parts(split / ANNOTATIONS, ["x"])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), PLAIN.filter(lambda value: value is not None)),
    st.sampled_from(["<f4", "<i8", "|b1", "<U3", "|O"]),
)
def test_plain_values_arrays_and_scalars_are_read(tmp_path_factory, plain, dtype):
    path = tmp_path_factory.mktemp("c") / "a.npy"
    inner = {
        "array": np.ones((2, 3)).astype(dtype),
        "scalar": np.float32(0.5),
        "text": np.str_("a"),
        "pair": (1, 2),
    }
    np.save(path, plain | {"in": inner}, allow_pickle=True)
    names = ["in.array", "in.scalar", "in.text", "in.pair", "in.nothing", *plain]
    assert read_parts(path, names) == plain | {
        "in.array": inner["array"].tolist(),
        "in.scalar": 0.5,
        "in.text": "a",
        "in.pair": [1, 2],
    }


def test_old_numpy_names_are_known(split):
    """CALVIN's own files come from numpy 1.x, which calls its modules numpy.core."""
    path = split / ANNOTATIONS
    old = pickle.dumps(np.load(path, allow_pickle=True), protocol=3).replace(
        b"numpy._core", b"numpy.core"
    )
    assert b"numpy.core.multiarray" in old
    path.write_bytes(path.read_bytes()[:128] + old)  # the header of the numpy file, then the pickle
    assert [episode.instruction for episode in read_calvin(split)] == SENTENCES


HOSTILE = {
    "a place of the memory beyond the machine's": b"\x80\x03}r\xff\xff\xff\x7f.",
    "a string longer than the file": b"\x80\x04}\x8d\xff\xff\xff\xff\xff\xff\x00\x00a" + b"K\x01s.",
    "a key whose hash overflows the stack": b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s.",
    "an array of more values than bytes": pickle.dumps({"a": np.zeros((3, 5))}, 4).replace(
        b"K\x05", b"K\xff"
    ),
    "an array of objects made of bytes": pickle.dumps({"a": np.zeros(3)}, 4).replace(b"f8", b"O8"),
    "text beyond the last character": pickle.dumps({"a": np.array(["abc"])}, 4).replace(
        b"a\0\0\0b", b"a\0\0\xffb"
    ),
    "an array as its own dtype": b"\x80\x04}\x8c\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    b"C\x01b\x87R\x94(K\x01)h\x00\x89]tbs.",
    "no end": b"\x80\x04}",
    "a mark that is not there": b"\x80\x04}u.",
    "code": b"cos\nsystem\n.",
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_would_crash_or_fill_the_memory_is_refused(split, content):
    """pickle.load and numpy run some of these, take gigabytes for others, and end the interpreter on the third kind."""
    path = split / ANNOTATIONS
    path.write_bytes(path.read_bytes()[:128] + content)
    assert str(path) in refused(split).where


def test_sentences_that_hold_themselves_and_spans_without_an_end(split):
    endless: list = ["a"]
    endless.append(endless)
    annotate(split, record(sentences=[*endless, "b"], tasks=TASKS))
    assert "Circular reference" in refused(split).problem
    annotate(split, record(sentences=["a", "b", "\ud800"]))
    assert "info.indx" in refused(split).problem  # half of a character could not be written again
    annotate(split, record([(3, 10**30), *SPANS[1:]]))
    assert "more than 9 digits" in refused(split).problem
    (split / "ep_start_end_ids.npy").unlink()
    annotate(split, record([(3, 10**9 - 1), *SPANS[1:]]))
    fault, *rest = read_calvin(split)
    assert "0000013.npz" in fault.where and all(isinstance(item, Episode) for item in rest)


# What is refused ------------------------------------------------------------------------------------------------------


def refused(folder: Path, **arguments) -> RoboAlignError:
    with pytest.raises(RoboAlignError) as caught:
        read_calvin(folder, **arguments)
    assert caught.value.where and caught.value.fix
    return caught.value


def test_wrong_arguments(split):
    assert "'joint'" in refused(split, actions="joint").problem
    assert "training" in refused(split.parent).fix
    assert "auto_lang_ann.npy" in refused(split / "nothing").problem


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"info": {"indx": SPANS}},
        record(SPANS[:2]),
        record(tasks=TASKS[:1]),
        record([(1.5, 2), *SPANS[1:]]),
        record([(1, 2, 3), *SPANS[1:]]),
        record("abc"),
        {"info": 3, "language": 4},
        [1, 2],
        np.zeros(3),
    ],
    ids=range(10),
)
def test_annotations_of_another_kind(split, value):
    annotate(split, value)
    assert "auto_lang_ann.npy" in refused(split).where


@pytest.mark.parametrize(
    "runs", [np.zeros(3, int), np.zeros((2, 2)), np.array([[None, 3]], dtype=object)]
)
def test_recordings_of_another_kind(split, runs):
    np.save(split / "ep_start_end_ids.npy", runs, allow_pickle=True)
    assert "ep_start_end_ids.npy" in refused(split).where


def test_truncated_annotations_are_refused(split):
    whole = (split / ANNOTATIONS).read_bytes()
    for size in range(0, len(whole), 67):
        (split / ANNOTATIONS).write_bytes(whole[:size])
        assert "auto_lang_ann.npy" in refused(split).where


@settings(max_examples=20, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_annotations_raises_nothing_but_one_kind_of_error(
    tmp_path_factory, place, bit
):
    path = tmp_path_factory.mktemp("flip") / "a.npy"
    np.save(path, record(), allow_pickle=True)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert all(part in PARTS for part in read_parts(path, PARTS))
    except ValueError as error:
        assert str(error)


# What is left out and counted -----------------------------------------------------------------------------------------


def faults(split: Path, **arguments) -> list[Fault]:
    return [item for item in read_calvin(split, **arguments) if isinstance(item, Fault)]


def test_a_missing_step_costs_the_annotations_that_hold_it(split):
    step_path(split, 8).unlink()
    first, fault, last = read_calvin(split)
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert "does not exist" in fault.problem and fault.where == str(step_path(split, 8))


def test_a_pipe_is_refused_and_not_waited_for(split):
    step_path(split, 8).unlink()
    os.mkfifo(step_path(split, 8))
    (fault,) = within(20, lambda: faults(split))
    assert (fault.where, fault.problem) == (str(step_path(split, 8)), "this is not a plain file")
    runs = split / "ep_start_end_ids.npy"
    runs.unlink(missing_ok=True)
    os.mkfifo(runs)
    with pytest.raises(RoboAlignError) as caught:
        within(20, lambda: list(read_calvin(split)))
    assert (caught.value.where, caught.value.problem) == (str(runs), "this is not a plain file")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rel_actions": None}, "no arrays ['rel_actions']"),
        ({"robot_obs": None}, "no arrays ['robot_obs']"),
        ({"rel_actions": np.zeros(6)}, "shape [6], expected [7]"),
        ({"robot_obs": np.zeros((1, 15))}, "expected [15]"),
        ({"rel_actions": np.full(7, np.nan)}, "not finite at step 3"),
        ({"rel_actions": np.array(["x"] * 7)}, "expected numbers"),
        ({"robot_obs": np.array([None] * 15)}, "not a readable npz"),
    ],
)
def test_a_broken_step_is_named(split, changes, problem):
    arrays = step_arrays(8) | changes
    np.savez(
        step_path(split, 8), **{name: value for name, value in arrays.items() if value is not None}
    )
    (fault,) = faults(split)
    assert problem in fault.problem and (
        "0000008.npz" in fault.where or "annotation 1" in fault.where
    )


def test_truncated_and_flipped_steps(split):
    path, rng = step_path(split, 8), np.random.default_rng(0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable npz" in faults(split)[0].problem
    for place in rng.integers(0, len(whole), 20):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        item = list(read_calvin(split))[1]
        if isinstance(
            item, Episode
        ):  # then numbers are those that were written: a zip file has checksums
            np.testing.assert_array_equal(
                item.actions[3], np.float32(step_arrays(8)["rel_actions"])
            )


def test_a_damaged_frame_is_the_one_error(split):
    _, episode, _ = read_calvin(split)
    np.savez(step_path(split, 8), **step_arrays(8) | {"rgb_static": np.zeros((3, 3, 3), np.uint8)})
    with pytest.raises(RoboAlignError, match="the first step's is uint8"):
        episode.frame("rgb_static", 3)
    step_path(split, 8).unlink()
    with pytest.raises(RoboAlignError, match=r"episode_0000008\.npz"):
        episode.frame("rgb_static", 3)


def test_an_annotation_across_two_recordings_is_a_fault(split):
    annotate(split, record([(3, 6), (8, 12), (6, 5)]))
    across, backwards = faults(split)
    assert "steps 8 to 12" in across.problem and "annotation 1" in across.where
    assert "from step 6 to step 5" in backwards.problem
    (split / "ep_start_end_ids.npy").unlink()
    assert len(faults(split)) == 1  # nothing tells then where a recording ends
