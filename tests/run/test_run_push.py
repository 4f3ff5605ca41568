"""`roboalign push`: what arrives at a stand-in of the Hub, what the card says, and every refusal."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_stand_in import READER, TOKEN, Hub, Repository, served, use_network, used
from stage_run import recipe

from roboalign.actions.normalize import ActionStats
from roboalign.cli.main import main
from roboalign.core.files import read_json, write_json
from roboalign.mllm.load import load_mllm
from roboalign.mllm.shipped import builtin_folder
from roboalign.run.load import dump_recipe
from roboalign.run.scheduler import stage_key
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy

ARM = "seed-0/head/roboalign"
ROLLOUTS = "seed-0/eval/rollouts/roboalign"


def stage_row(run: Path, name: str, needs: tuple[str, ...], **settings: Any) -> None:
    keys = [read_json(run / need / "stage.json")["key"] for need in needs]
    key = stage_key(name, settings, keys)
    row = {"stage": name, "key": key, "needs": list(needs), "settings": settings}
    write_json(run / name / "stage.json", row)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the shipped model as its backbone, a head that was never trained, and made-up numbers."""
    run = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(builtin_folder(), run / "seed-0" / "rl" / "model")
    mllm = load_mllm(run / "seed-0" / "rl" / "model")
    torch.manual_seed(0)
    width = mllm.model.config.get_text_config().hidden_size
    config = HeadConfig(
        width=16, layers=1, heads=2, hidden_width=16, vlm_inner_width=16, vlm_heads=2
    )
    shape = HeadShape(horizon=4, action_dim=4, state_dim=4, vlm_width=width)
    stats = ActionStats.fit(np.random.default_rng(0).uniform(-1, 1, (20, 4)))
    view = View(layer=2, cameras=("workspace",))
    HeadPolicy(mllm, FlowMatchingHead(config, shape), view, stats, stats).save(run / ARM / "policy")

    settings = recipe(
        backbone={"source": "builtin"}, collect={"downstream_tasks": ["door-unlock-v3"]}
    )
    (run / "recipe.yaml").write_text(dump_recipe(settings))
    write_json(run / "mix/mixture/manifest.json", {"counts": {"train": {"conversations": 1234}}})
    for name, needs in ((ARM, ()), (ROLLOUTS, (ARM,)), ("report", (ROLLOUTS,))):
        stage_row(run, name, needs)
    write_json(run / ROLLOUTS / "protocol.json", {"benchmark": "metaworld", "max_steps": 250})
    rate = {"successes": 5, "n": 40, "crashes": 0, "rate": 0.125, "low": 0.0546, "high": 0.2611}
    success = {"arms": {"roboalign": {"overall": rate, "tasks": {"door-unlock-v3": rate}}}}
    prefix = {"value": 0.1265, "low": 0.0904, "high": 0.1652, "n": 200}
    summary = {
        "environment": {"date": "2026-11-24", "commit": "abc", "training seeds": "0"},
        "success": success,
        "arms": {"roboalign": {"actions": {"think": {"prefix": prefix}}}},
    }
    write_json(run / "report/summary.json", summary)
    return run


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served() as found, used(found, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def observation() -> Any:
    images = {"workspace": np.full((64, 64, 3), 100, np.uint8)}
    state = np.array([0.1, 0.2, -0.3, 0.4])
    return SimpleNamespace(images=images, state=state, instruction="Unlock the door.")


def card_of(files: dict[str, bytes]) -> tuple[dict[str, Any], str]:
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_policy_is_pushed_and_loads_by_its_id(
    there: Hub, made: Path, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(made.rglob("*"))
    assert main(["push", str(made), "--to", "owner/door", "--private"]) == 0
    assert capsys.readouterr().out.endswith(f"uploaded: {there.url}/owner/door\n")
    assert sorted(made.rglob("*")) == before, "the run is only read"

    repository = there.repositories["model", "owner/door"]
    assert repository.private
    backbone = {f"backbone/{path.name}" for path in builtin_folder().iterdir()}
    assert set(repository.files) == {"README.md", "policy.json", "head.safetensors", *backbone}
    record = json.loads(repository.files["policy.json"])
    assert record == {
        **read_json(made / ARM / "policy/policy.json"),
        "backbone": {**record["backbone"], "path": "backbone"},
    }

    mine = Policy.load(made / ARM / "policy").act(observation(), ("a", 1))
    _, text = card_of(repository.files)
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"observation": observation()}
    exec(code, names)  # as the card says it
    np.testing.assert_array_equal(names["policy"].act(observation(), ("a", 1)), mine)


def test_what_the_card_says(there: Hub, made: Path) -> None:
    main(["push", str(made), "--to", "owner/door"])
    metadata, text = card_of(there.repositories["model", "owner/door"].files)
    assert metadata["license"] == "apache-2.0"
    assert metadata["pipeline_tag"] == "robotics"
    assert "| Success, all tasks | 12.5% | 5.5–26.1 | 40 episodes |" in text
    assert "| Success, `door-unlock-v3` | 12.5% | 5.5–26.1 | 40 episodes |" in text
    assert "| Prefix, reasoned | 0.127 | 0.090–0.165 | 200 |" in text
    assert "- train: 1,234 conversations" in text
    assert "- head: demonstrations on `metaworld` of `door-unlock-v3`" in text
    assert '"max_steps": 250' in text
    assert "date: 2026-11-24; commit: abc" in text
    assert str(made) not in text


def test_the_model_of_a_run(there: Hub, made: Path) -> None:
    assert main(["push", str(made), "--to", "owner/mllm", "--what", "model"]) == 0
    repository = there.repositories["model", "owner/mllm"]
    mine = {path.name: path.read_bytes() for path in builtin_folder().iterdir()}
    metadata, text = card_of(repository.files)
    assert repository.files == {**mine, "README.md": repository.files["README.md"]}
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert "Success" not in text, "no head, no success rate"
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["mllm"].folder.name == repository.commit


def test_a_policy_alone_and_a_dry_run(
    there: Hub, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(made / "seed-0" / "rl", tmp_path / "copy" / "rl")
    shutil.copytree(made / ARM / "policy", tmp_path / "copy" / "x" / "y" / "policy")
    folder = tmp_path / "copy" / "x" / "y" / "policy"
    assert main(["push", str(folder), "--to", "owner/door", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Not measured: the folder belongs to no run." in said
    assert "license: unknown" in said
    assert "Its license is not known here" in said
    assert "Would upload 11 files to owner/door:" in said
    assert f"backbone/model.safetensors  {3892992:,} bytes" in said
    assert there.requests == []


def test_numbers_of_other_weights_are_left_out(
    there: Hub, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    stage_row(run, ARM, (), steps=9)  # the head was trained again, and not measured
    assert main(["push", str(run / ARM / "policy"), "--to", "owner/door", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Not measured: the run's report is of other weights than these." in said
    assert "12.5%" not in said


@pytest.mark.parametrize(
    ("metadata", "shown", "written"),
    [
        (
            "license: other\nlicense_name: qwen-research\nlicense_link: https://x/LICENSE",
            "Its license is `qwen-research` ([text](https://x/LICENSE)), and holds for these",
            {"license": "other", "license_name": "qwen-research"},
        ),
        ("tags: [a]", "Its license is not known here", {"license": "unknown"}),
        ("license: [", "Its license is not known here", {"license": "unknown"}),
    ],
)
def test_the_license_of_a_backbone_from_the_hub(
    there: Hub, made: Path, tmp_path: Path, metadata: str, shown: str, written: dict[str, str]
) -> None:
    source = Repository.of(builtin_folder())
    source.files["README.md"] = f"---\n{metadata}\n---\n# Tiny\n".encode()
    there.repositories["model", "qwen/tiny"] = source
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (run / "recipe.yaml").write_text(
        dump_recipe(recipe(backbone={"source": f"qwen/tiny@{source.commit}"}))
    )
    assert main(["push", str(run), "--to", "owner/door"]) == 0
    found, text = card_of(there.repositories["model", "owner/door"].files)
    assert shown in text
    assert found["base_model"] == "qwen/tiny"
    assert written.items() <= found.items()


def test_refusals(
    there: Hub, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["push", *arguments]) == 2
        return capsys.readouterr().err

    run, to = str(made), ("--to", "owner/door")
    assert "give USER/NAME" in refused(run, "--to", "door")
    assert "neither a run nor a policy" in refused(str(made / "report"), *to)
    assert "the run has no arm sft of seed 7" in refused(run, *to, "--arm", "sft", "--seed", "7")
    assert "has no policy of arm sft yet" in refused(run, *to, "--arm", "sft")
    assert "this is a policy" in refused(str(made / ARM / "policy"), *to, "--seed", "0")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token may not write there" in refused(run, *to)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hub does not accept the token" in refused(run, *to)
    monkeypatch.delenv("HF_TOKEN")
    assert "no token of the Hub" in refused(run, *to)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    there.repositories["model", "owner/door"] = Repository({"old.txt": b""})
    assert "the repository exists" in refused(run, *to)
    assert set(there.repositories["model", "owner/door"].files) == {"old.txt"}
    assert main(["push", run, *to, "--update"]) == 0
    assert "policy.json" in there.repositories["model", "owner/door"].files
    use_network(monkeypatch, False)
    assert "HF_HUB_OFFLINE forbids uploads" in refused(run, *to)
