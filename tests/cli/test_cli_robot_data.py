"""`roboalign data`: as it is typed."""

from pathlib import Path

import numpy as np
import pytest
from data_episodes import make_episode

from roboalign.actions.known_spaces import KNOWN
from roboalign.cli.main import main
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    made = [
        make_episode(task, seed=seed, steps=24)
        for task in ("puck-push", "drawer-open")
        for seed in range(3)
    ]
    rewrite(RobotData("made", "test", lambda: iter(made)), tmp_path / "made")
    return tmp_path / "made"


def test_inspect_prints_tables_and_writes_the_page(data_set: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "page.html"
    assert (
        main(
            [
                "data",
                "inspect",
                str(data_set),
                "--space",
                "metaworld",
                "--horizon",
                "8",
                "--out",
                str(page),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        "gripper" in printed and "Push the puck to the target." in printed and str(page) in printed
    )
    html = page.read_text()
    assert html.count("data:image/jpeg") >= 3 and "http" not in html.split("</style>")[1].replace(
        "http://www.w3", ""
    )


def test_convert_writes_the_actions_in_the_other_space(
    data_set: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        KNOWN, "metres", KNOWN["metaworld"].model_copy(update={"position_scale": 1.0})
    )
    out = tmp_path / "out"
    assert (
        main(
            [
                "data",
                "convert",
                str(data_set),
                "--space",
                "metaworld",
                "--to",
                "metres",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert "6 episodes" in capsys.readouterr().out
    for before, after in zip(read_lerobot(data_set), read_lerobot(out), strict=True):
        np.testing.assert_allclose(after.actions[:, :3], before.actions[:, :3] * 0.01, rtol=1e-5)
        np.testing.assert_array_equal(after.actions[:, 3], before.actions[:, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "bridgev2"], "did you mean bridge"),
        (["--read", "fps"], "key=value"),
        (["--read", "fps=5"], "lerobot reader has no option fps"),
        (["--camera", "wrist"], "no camera 'wrist'"),
        (["--fast", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_message(
    data_set: Path, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    assert (
        main(["data", "inspect", str(data_set), "--out", str(tmp_path / "page.html"), *arguments])
        == 2
    )
    assert message in capsys.readouterr().err and not (tmp_path / "page.html").exists()
