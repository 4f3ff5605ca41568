"""The road of a user's own data: init, plan, run, replay, export, serve, as commands."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from own_sets import write_own

from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.run.load import load_recipe
from roboalign.serve.client import RemotePolicy
from roboalign.serve.describe import contract_of
from roboalign.sim.base import Observation
from roboalign.vla.policy import Policy

SPACE = "control=end-effector,mode=delta,gripper=closed_one,position_scale=0.05"
PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "your-robot.md"
SMALL = (
    "arms=[roboalign]",
    "parallel=1",
    "tokenizer={horizon: 4, vocab_size: 64}",
    "mix.conversations=220",
    "mix.heldout_actions=10",
    "mix.heldout_episode_share=0.34",
    "backbone.layer=1",
    "sft.max_steps=2",
    "rl={prompts_per_rollout: 2, prompts_per_update: 2, micro_batch_size: 2, samples: 2, updates: 1, "
    "max_new_tokens: 8, reward: decoded}",
    "tokens={max_actions: 10, max_new_tokens: 8}",
    "head={width: 32, layers: 2, heads: 2, hidden_width: 32, vlm_inner_width: 32, vlm_heads: 2, proprioception: true}",
    "head_training={steps: 2, batch_size: 4, eval_every: 2, features: {every: 4}}",
)
POLICY = Path("seed-0") / "head" / "roboalign" / "policy"


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def page_commands() -> list[list[str]]:
    """The arguments of every `roboalign` command of the tutorial, in order."""
    lines = re.findall(r"^    roboalign (.+)$", PAGE.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the tutorial's commands were run, `run` at a tiny scale; `serve` is a test of its own."""
    folder = tmp_path_factory.mktemp("road")
    write_own(folder / "data" / "pick_cube")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, given in enumerate(page_commands()):
            if given[0] == "serve" or "--server" in given:
                continue
            sets = [part for value in SMALL for part in ("--set", value)]
            status = main([*given, *(sets if given[0] == "run" else [])])
            assert status == (2 if number == 0 else 0), (
                given
            )  # the first one asks what it cannot see
        yield folder


def test_the_page_shows_the_whole_road() -> None:
    assert [given[0] for given in page_commands()] == [
        "init",
        "init",
        "plan",
        "run",
        "replay",
        "export",
        "serve",
        "replay",
    ]


def test_the_pages_server_serves(place: Path) -> None:
    (given,) = (given for given in page_commands() if given[0] == "serve")
    line = [sys.executable, "-m", "roboalign", *given, "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=place) as server:
        try:
            assert server.stderr is not None
            said = []
            for text in server.stderr:
                said.append(text)
                if "listening on ws://127.0.0.1:" in text:
                    break
            port = int(said[-1].rsplit(":", 1)[1])
            policy = Policy.load(place / "policies" / "pick_cube")
            with RemotePolicy("127.0.0.1", port) as remote:
                asked = remote.act(observation(), ("a", 0))
                assert remote.fps == 10.0
            np.testing.assert_allclose(asked, policy.act(observation(), ("a", 0)), atol=1e-5)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def test_init_asks_what_it_cannot_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_own(tmp_path / "pick_cube", 3)
    out = tmp_path / "r.yaml"
    assert command("init", data, "--backbone", "builtin", "--out", out) == 2
    said = capsys.readouterr()
    assert not out.exists() and len(said.err.splitlines()) == 2
    assert "what its 4 action numbers mean is not recorded, and is never guessed" in said.err
    fix = said.err.splitlines()[1]
    assert "--action-space control=end-effector,mode=delta,rotation=none,gripper=closed_one" in fix
    assert "--action-space control=end-effector,mode=delta,rotation=none,gripper=open_one" in fix
    assert (
        "3 of 3 action dimensions that move: each is proportional to the change of the state"
        in (" ".join(said.out.split()))
    )


def test_every_suggestion_is_accepted(tmp_path: Path) -> None:
    data = write_own(tmp_path / "pick_cube", 3)
    for number, code in enumerate(("closed_one", "open_one")):
        text = f"control=end-effector,mode=delta,rotation=none,gripper={code}"
        out = tmp_path / f"r{number}.yaml"
        given = ("--backbone", "builtin", "--action-space", text, "--out", out)
        assert command("init", data, *given) == 0
        assert load_recipe(out).demos.sets[0].space.gripper == code


def test_a_double_delta_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody subtracted the state from actions that were deltas already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = write_own(tmp_path / "twice", 6, steps=40)
    for path in (data / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        action = np.array(table["action"].to_pylist(), np.float32)
        state = np.array(table["observation.state"].to_pylist(), np.float32)
        action[:, :3] = action[:, :3] * 0.05 - state[:, :3]
        place = table.schema.get_field_index("action")
        column = pa.array(action.tolist(), type=table.schema.field(place).type)
        pq.write_table(table.set_column(place, table.schema.field(place), column), path)
    assert command("init", data, "--backbone", "builtin", "--out", tmp_path / "r.yaml") == 2
    said = capsys.readouterr()
    assert "They look like a double delta" in said.err
    given = ("--action-space", SPACE, "--out", tmp_path / "r.yaml")
    assert command("init", data, "--backbone", "builtin", *given) == 0
    text = " ".join((tmp_path / "r.yaml").read_text().replace("#", "").split())
    named = "The actions look like a double delta. 3 of 3 action dimensions"
    assert named in text and named in " ".join(capsys.readouterr().out.split())
    assert command("plan", tmp_path / "r.yaml", "--gpus", "1xL40S") == 0
    assert named in " ".join(capsys.readouterr().out.split())
    page = tmp_path / "page.html"
    assert command("data", "inspect", data, "--out", page) == 0
    assert named in " ".join(capsys.readouterr().out.split()) and named in page.read_text()


def test_what_init_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_own(tmp_path / "own", 3), tmp_path / "r.yaml"
    silent = write_own(tmp_path / "silent", 3, instruction="")
    space = ("--action-space", SPACE)
    faults: list[tuple[str, Path, tuple[Any, ...]]] = [
        ("this space has 7 dimensions", data, ("--action-space", "bridge")),
        (
            "`gripper`: Input should be",
            data,
            ("--action-space", "control=joint,mode=delta,joints=4,gripper=shut"),
        ),
        (
            "there is no camera 'side'; the data has top, wrist",
            data,
            (*space, "--camera", "a=side"),
        ),
        ("a camera is NAME=CAMERA", data, (*space, "--camera", "top")),
        ("3 episodes record no instruction", silent, space),
        ("a recipe is a .yaml file", data, (*space, "--out", tmp_path / "recipe.txt")),
        ("it exists already", data, (*space, "--out", data / "meta" / "info.json")),
    ]
    for message, path, given in faults:
        assert command("init", path, "--backbone", "builtin", "--out", out, *given) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 2 and not out.exists()
    assert command("init", data, "--backbone", "nothing/there", "--out", out, *space) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_recipe_is_planned_with_what_the_data_say(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("plan", place / "pick_cube.yaml", "--gpus", "1xL40S") == 0
    said = capsys.readouterr().out
    assert "an image of 32 x 32" in said
    assert "episodes 6" in said and "episode_steps 20" in said
    assert "action_dim 4" in " ".join(said.split()) and "state_dim 4" in " ".join(said.split())
    recipe = load_recipe(place / "pick_cube.yaml")
    assert recipe.demos.sets[0].cameras == {"top": "top", "wrist": "wrist"}
    assert recipe.tokenizer.horizon == 8 and recipe.head.proprioception
    values = yaml.safe_load((place / "pick_cube.yaml").read_text())
    assert values["measure"] == "offline" and values["name"] == "pick_cube"


def test_replay_gives_the_numbers_of_the_runs_own_stage(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, page = tmp_path / "found.json", tmp_path / "page.html"
    given = ("--json", numbers, "--out", page)
    assert command("replay", place / "runs" / "pick_cube", *given) == 0
    said = capsys.readouterr().out
    found = read_json(numbers)
    stage = read_json(place / "runs" / "pick_cube" / "seed-0/eval/replay/roboalign/replay.json")
    for key in ("overall", "dimensions", "by_step", "gripper", "by_episode", "traces", "held_out"):
        assert found[key] == stage[key], key
    assert "it does not predict success" in " ".join(said.split())
    html = page.read_text()
    assert html.count("<svg") == 1 + 2 * 4  # the error by step; two episodes of four dimensions
    assert "last action held" in html and "x, 0.05 m" in html


def test_replay_through_a_server_gives_the_same_numbers(place: Path, tmp_path: Path) -> None:
    sys.path.append(str(Path(__file__).parent / "serve"))
    from serving import served

    folder = place / "runs" / "pick_cube" / POLICY
    policy = Policy.load(folder)
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    given = (
        "replay",
        place / "runs" / "pick_cube",
        place / "data" / "pick_cube",
        "--out",
        tmp_path / "p.html",
    )
    assert command(*given, "--json", here) == 0
    with served(policy, contract_of(policy, folder)) as server:
        url = f"ws://127.0.0.1:{server.port}"
        assert command(*given, "--server", url, "--json", there) == 0
    found, other = read_json(here), read_json(there)
    assert found["held_out"] is True and found["episodes"] == other["episodes"] == 2
    for key in ("overall", "dimensions", "by_step", "gripper", "by_episode", "traces"):
        np.testing.assert_allclose(_numbers(found[key]), _numbers(other[key]), rtol=1e-4, atol=1e-5)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for part in value.values() for n in _numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in _numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


def observation(number: int = 0) -> Observation:
    rng = np.random.default_rng(number)
    images = {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in ("top", "wrist")}
    state = rng.uniform(-0.2, 0.2, 4).astype(np.float32)
    return Observation(images, state, "Put the cube into the bowl.")


def test_an_exported_policy_opens_alone_and_acts_alike(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "policy"
    shutil.copytree(place / "policies" / "pick_cube", moved)
    files = {str(path.relative_to(moved)) for path in moved.rglob("*") if path.is_file()}
    assert {"policy.json", "head.safetensors", "backbone/model.safetensors"} <= files
    assert not [name for name in files if not name.endswith((".json", ".safetensors", ".jinja"))]
    inside = Policy.load(place / "runs" / "pick_cube" / POLICY)
    alone = Policy.load(moved)
    assert len(alone.mllm.model.get_decoder().layers) == 1
    spread = inside.action_stats.q99 - inside.action_stats.q01
    for number in range(3):
        one, other = (p.act(observation(number), ("a", number)) for p in (inside, alone))
        assert (np.abs(one - other) / spread).max() < 0.05 and not np.array_equal(one, other)
    whole = sum(
        p.stat().st_size
        for p in (place / "runs" / "pick_cube" / "seed-0" / "rl" / "model").rglob("*.safetensors")
    )
    cut = (moved / "backbone" / "model.safetensors").stat().st_size
    assert cut < whole / 2  # 16 bits of one layer of three


def test_an_exported_policy_says_what_it_wants(place: Path) -> None:
    policy = Policy.load(place / "policies" / "pick_cube")
    metadata = contract_of(policy, place / "policies" / "pick_cube").metadata()
    assert metadata["fps"] == 10.0 and metadata["action"]["space"]["gripper"] == "closed_one"
    assert metadata["observation"]["observation/top"]["shape"] == [32, 32, 3]
    assert metadata["observation"]["observation/state"] == {
        "dtype": "float32",
        "shape": [4],
        "names": ["x", "y", "z", "gripper"],
        "required": True,
    }
    facts = read_json(place / "policies" / "pick_cube" / "policy.json")["facts"]
    assert facts["instructions"] == ["Put the cube into the bowl."] and len(facts["trained"]) == 4
    assert "Put the cube into the bowl." in facts["prompt"] and "content" not in facts


def test_an_exported_policy_knows_what_it_was_trained_on(place: Path, tmp_path: Path) -> None:
    numbers, page = tmp_path / "n.json", tmp_path / "p.html"
    given = ("--json", numbers, "--out", page)
    assert (
        command("replay", place / "policies" / "pick_cube", place / "data" / "pick_cube", *given)
        == 0
    )
    held = read_json(place / "runs" / "pick_cube" / "collect" / "downstream.json")["heldout"]
    found = read_json(numbers)
    assert found["held_out"] is True
    same = [row["episode"].split("/")[1] for row in found["by_episode"]]
    assert sorted(same) == sorted(name.split("/")[1] for name in held)
    fresh = write_own(tmp_path / "fresh", 2, first=50)
    assert command("replay", place / "policies" / "pick_cube", fresh, *given) == 0
    assert read_json(numbers)["held_out"] is True and read_json(numbers)["episodes"] == 2


def test_another_rate_or_camera_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = write_own(tmp_path / "fast", 2, fps=30, first=50)
    page = ("--out", tmp_path / "p.html")
    assert command("replay", place / "policies" / "pick_cube", fast, *page) == 2
    assert "the data has 30 actions a second, the policy answers at 10" in capsys.readouterr().err
    other = write_own(tmp_path / "other", 2, first=50, cameras=("side", "wrist"))
    assert command("replay", place / "policies" / "pick_cube", other, *page) == 2
    assert "there is no camera 'top'; the data set has side, wrist" in capsys.readouterr().err
    given = ("--camera", "top=side", "--camera", "wrist=wrist")
    assert command("replay", place / "policies" / "pick_cube", other, *given, *page) == 0


@pytest.mark.parametrize("name", ["head.safetensors", "backbone/model.safetensors", "policy.json"])
def test_a_damaged_export_is_refused(place: Path, tmp_path: Path, name: str) -> None:
    broken = tmp_path / "policy"
    shutil.copytree(place / "policies" / "pick_cube", broken)
    path = broken / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(RoboAlignError):
        contract_of(Policy.load(broken), broken)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RoboAlignError):
        contract_of(Policy.load(broken), broken)


def test_an_export_replaces_only_an_export(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert command("export", "policy", place / "runs" / "pick_cube", "--out", other) == 2
    assert "nothing that this command wrote" in capsys.readouterr().err
    assert (other / "thesis.txt").read_text() == "years of work"
    again = tmp_path / "again"
    assert command("export", "policy", place / "policies" / "pick_cube", "--out", again) == 0
    one, two = (read_json(at / "policy.json") for at in (place / "policies" / "pick_cube", again))
    assert one == two


def test_table_says_that_nothing_was_measured_in_closed_loop(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("table", place / "runs" / "pick_cube") == 0
    said = capsys.readouterr().out
    assert "Nothing was measured in closed loop" in said and "last action held" in said
    assert command("table", place / "runs" / "pick_cube", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["others"]
    assert row["closed_loop"] is None and set(row["open_loop"]) == {"roboalign"}
    assert (
        command("compare", place / "runs" / "pick_cube", "--arm", "sft", "--arm", "roboalign") == 2
    )
    assert "nothing was measured in closed loop" in capsys.readouterr().err
