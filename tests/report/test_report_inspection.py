"""The inspection page: what needs attention is said, actions are drawn where they say they are, nothing is fetched."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from data_episodes import make_episode
from html_page import Page
from PIL import Image

from roboalign.actions.normalize import ActionStats
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.survey.measures import Histogram
from roboalign.episodes.survey.statistics import Survey, keep_episodes, survey_episodes
from roboalign.report.attention import attention
from roboalign.report.drawing import (
    ARROW,
    BAR,
    PATH,
    SQUARE,
    draw_path,
    drawn_frame,
    histogram_plot,
    jpeg,
)
from roboalign.report.inspection import draw_action, write_inspection
from roboalign.report.inspection_text import inspection_text

DELTA = ActionSpace(control="end-effector", mode="delta", gripper="closed_positive")
SECTIONS = {
    "answer",
    "frames",
    "action",
    "state",
    "tokens",
    "cameras",
    "instructions",
    "repeats",
    "faults",
    "limits",
}
EVIL = "<script>alert(1)</script> [bold]&\"'"


def data_of(*items: Episode | Fault) -> RobotData:
    return RobotData("made", "memory", lambda: iter(items))


def clean_episodes(count: int = 8) -> list[Episode]:
    """Nothing is wrong with them."""
    episodes = []
    for i in range(count):
        rng = np.random.default_rng(i)
        actions = rng.normal(size=(30, 4)).astype(np.float32)
        frames = [encode_png(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)) for _ in range(30)]
        episodes.append(
            Episode(
                f"made/{i}",
                "lift",
                "Lift it.",
                10.0,
                actions,
                np.cumsum(actions, axis=0)[:, :3] - actions[:, :3],  # an action moves the state
                {"front": frames},
                {"front": Camera("front", 32, 24)},
                action_space=DELTA,
            )
        )
    return episodes


def faulty_episodes() -> list[Episode | Fault]:
    """One of everything that is looked for."""
    episodes = clean_episodes(12)
    for episode in episodes:
        episode.actions[:, 2] = 0.25  # constant
    episodes[3].actions[7, 1] = 1e5
    dark = [encode_png(np.zeros((24, 32, 3), dtype=np.uint8))] * 30
    episodes[0].images["wrist"] = dark
    episodes[1].images["front"] = [b"no image", *episodes[1].images["front"][1:]]
    episodes[2] = replace(episodes[2], instruction=" ", fps=30.0, action_space=None)
    episodes[4] = replace(episodes[4], instruction=EVIL)
    twin = replace(episodes[5], episode_id="made/twin")
    return [*episodes, twin, Fault("shard 7, record 3", "checksum differs", "download it again")]


@pytest.fixture(scope="module")
def clean() -> Survey:
    return survey_episodes(data_of(*clean_episodes()))


@pytest.fixture(scope="module")
def faulty() -> tuple[Survey, list[Episode]]:
    kept: list[Episode] = []
    return survey_episodes(keep_episodes(data_of(*faulty_episodes()), kept, count=20)), kept


@pytest.fixture(scope="module")
def html(faulty, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("inspection") / "page.html"
    write_inspection(*faulty, path)
    return path.read_text()


def test_the_page_is_whole_and_fetches_nothing(html):
    page = Page(html)
    assert not page.open and set(page.ids) >= SECTIONS
    assert page.links and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?://|file:|@import|url\((?!#)|<script", html)
    assert page.tags.count("svg") == 4 + 3 + 1
    assert EVIL in "".join(page.texts)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", " ".join(page.texts))


SENTENCES = (
    "2 faults, 1 episode left out of all numbers. The first: shard 7, record 3: checksum differs.",
    "Action hardly changes in z:",
    "Camera wrist is black in all 3 frames looked at.",
    "Camera wrist is missing in 12 episodes.",
    "1 episode of 13 (7.7%) without an instruction.",
    "1 time the actions of one episode came again, equal, in another; for example made/5, made/twin.",
    "3 times a frame of one episode came again",
    "Action has values far outside the rest in y (0.26% of rows); look first at made/3.",
    "Several frame rates: 10 (12 episodes), 30 (1 episodes).",
    "Several meanings of the action:",
)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_needs_attention_is_said_on_the_page_and_as_text(faulty, html, sentence):
    assert any(found.startswith(sentence) for found in attention(faulty[0]))
    assert sentence in " ".join("".join(Page(html).texts).split())
    assert sentence in " ".join(inspection_text(faulty[0]).split())


def test_nothing_is_said_where_nothing_is_wrong(clean, tmp_path):
    assert attention(clean) == []
    assert "Nothing that this inspection looks for." in inspection_text(clean)
    write_inspection(clean, [], tmp_path / "page.html")
    text = "".join(Page((tmp_path / "page.html").read_text()).texts)
    assert "Nothing that this inspection looks for." in text and "No frame to show." in text


def test_limits_short_episodes_and_an_unstated_meaning_are_said():
    episodes = clean_episodes(3)
    for episode in episodes:
        episode.actions[:] = np.clip(episode.actions, -1, 1)
    found = survey_episodes(data_of(*episodes), horizon=50)
    said = attention(found)
    share = np.mean(np.abs(np.concatenate([episode.actions[:, 0] for episode in episodes])) == 1)
    assert 0.2 < share < 0.5 and any(
        f"as if clipped, in x ({100 * share:.1f}%)" in sentence for sentence in said
    )
    assert any("shorter than a chunk of 50 steps (median 30)" in sentence for sentence in said)
    silent = attention(survey_episodes(data_of(*(replace(e, action_space=None) for e in episodes))))
    assert any("an action mean is not stated" in sentence for sentence in silent)
    assert "Action tokens were not measured" in " ".join(
        attention(survey_episodes(data_of(episodes[0])))
    )


def test_the_numbers_are_in_the_tables(clean):
    text = inspection_text(clean)
    assert f"{clean.action[0].q99:.4g}" in text and f"{clean.tokens.l1:.4f}" in text
    assert "16 steps x 4 dimensions = 64" in text and "32 x 24" in text
    assert re.search(r"Lift it\.\s+8", text)
    assert max(map(len, text.splitlines())) <= 80


def test_frames_of_every_camera_are_shown_and_broken_ones_left_out(faulty, html, tmp_path):
    episodes = faulty[1]
    assert len(episodes) == 13
    assert (
        html.count("<img ") == 13 + 6
    )  # one of each episode in front, six of the one with a wrist camera
    broken = replace(episodes[6], images={"front": [b"no image"] * 30})
    captions = html.count("The action of this step, in its own axes")
    assert (
        captions == 2 and "No action is drawn" in html
    )  # made/2 does not state what its actions mean
    write_inspection(faulty[0], [broken], tmp_path / "page.html")
    assert "<img " not in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_one_error(clean, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RoboAlignError, match="cannot be written"):
        write_inspection(clean, [], tmp_path / "file" / "page.html")


STATS = ActionStats(
    q01=np.array([-1.0, -2.0, -1.0, -1.0]),
    q99=np.array([1.0, 2.0, 4.0, 1.0]),
    mean=np.zeros(4),
    std=np.ones(4),
    minimum=-np.ones(4),
    maximum=np.ones(4),
    count=9,
)


def marked(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of the pixels of this colour."""
    return np.argwhere((image == colour).all(axis=-1))


def test_an_action_is_drawn_pixel_by_pixel():
    frame = np.zeros((100, 200, 3), dtype=np.uint8)
    image = draw_action(frame, np.array([2.0, 0.0, 2.0, 1.0]), STATS, DELTA)
    assert not frame.any() and image.shape == frame.shape
    row = np.flatnonzero((image[50] == ARROW).all(axis=-1))
    assert row.tolist() == list(range(100, 141))  # from the centre 0.4 of 100 pixels to the right
    bar = marked(image, BAR)
    assert bar[:, 0].min() == 30 and bar[:, 0].max() == 50  # z is half of its reach, upwards
    assert bar[:, 1].max() == 199
    square = marked(image, SQUARE)
    assert len(square) == 9 * 9  # closed: filled
    assert square.min(axis=0).tolist() == [89, 2] and square.max(axis=0).tolist() == [97, 10]


def test_an_arrow_points_up_for_positive_y_is_cut_at_its_longest_and_zero_draws_none():
    frame = np.zeros((100, 200, 3), dtype=np.uint8)
    up = marked(draw_action(frame, np.array([0.0, 50.0, -4.0, -1.0]), STATS, DELTA), ARROW)
    assert (up[:, 0].min(), up[:, 0].max()) == (10, 50) and abs(up[:, 1].mean() - 100) < 0.6
    still = draw_action(frame, np.array([0.0, 0.0, -4.0, -1.0]), STATS, DELTA)
    assert not len(marked(still, ARROW))
    assert marked(still, BAR)[:, 0].max() == 90  # down
    assert 0 < len(marked(still, SQUARE)) < 9 * 9  # open: an outline
    half = marked(draw_action(frame, np.array([0.0, 1.0, 0.0, 0.0]), STATS, DELTA), ARROW)
    assert half[:, 0].min() == 30
    toolless = DELTA.model_copy(update={"gripper": "none"})
    assert not len(marked(draw_action(frame, np.zeros(3), STATS, toolless), SQUARE))


def test_a_path_goes_through_its_points_and_leaves_out_those_behind_the_camera():
    frame = np.zeros((60, 60, 3), dtype=np.uint8)
    image = draw_path(frame, np.array([[10.0, 30.0], [np.nan, np.nan], [50.0, 30.0]]))
    assert (image[30, 14:51] == PATH).all() and not (image[:20] == PATH).all(axis=-1).any()
    assert not draw_path(frame, np.full((3, 2), np.nan)).any()


def test_what_is_drawn_follows_from_what_is_known():
    episode, stats = make_episode(), ActionStats.fit(make_episode().actions)
    known = drawn_frame(episode, "workspace", 4, stats)
    assert known.how == "path" and known.image.shape == (320, 320, 3)
    u, v = (
        episode.cameras["workspace"].pixels(episode.position("gripper")[4]) * 10
    )  # 32 pixels shown as 320
    ring = marked(known.image, PATH)
    assert np.abs(ring - [v, u]).sum(axis=1).min() < 12
    unprojected = replace(episode, cameras={"workspace": Camera("workspace", 32, 32)})
    assert drawn_frame(unprojected, "workspace", 4, stats).how == "none"
    assert (
        drawn_frame(replace(unprojected, action_space=DELTA), "workspace", 4, stats).how == "arrow"
    )
    absolute = ActionSpace(control="end-effector", mode="absolute", gripper="open_one")
    assert (
        drawn_frame(replace(unprojected, action_space=absolute), "workspace", 4, stats).how
        == "none"
    )
    joints = ActionSpace(control="joint", mode="delta", joints=4)
    assert (
        drawn_frame(replace(unprojected, action_space=joints), "workspace", 4, stats).how == "none"
    )


def test_a_histogram_has_a_bar_for_each_filled_bin():
    svg = histogram_plot("a < b", Histogram([0.0, 1.0, 2.0, 4.0], [5, 0, 10]), (1.0, 9.0))
    assert "a &lt; b: 15 values from 0 to 4" in svg
    bars = re.search(r'd="([^"]*)" fill="var\(--line-1\)"', svg).group(1)
    assert re.findall(r"V(\d+\.\d)H", bars) == ["58.0", "24.0"]  # 92 - 34 and 92 - 68
    assert re.search(
        r'd="(M79\.0 22V92)" stroke="var\(--line-2\)"', svg
    )  # the mark at 9 is outside


def test_jpeg_keeps_the_picture():
    frame = draw_action(
        np.full((64, 64, 3), 90, dtype=np.uint8), np.array([1.0, 0, 0, 0]), STATS, DELTA
    )
    again = np.array(Image.open(io.BytesIO(jpeg(frame))))
    assert np.abs(again.astype(int) - frame).mean() < 3
