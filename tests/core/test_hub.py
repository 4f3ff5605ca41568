"""Hub ids, against a stand-in of the Hub on loopback: what is fetched, what is refused and with which words."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import TOKEN, Hub, Repository, served, use_network, used
from huggingface_hub import constants

from roboalign.core import hub
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import HubId, content_key, pinned, resolve
from roboalign.mllm.load import load_mllm

TINY = Path(hub.__file__).parents[1] / "mllm" / "pretrained" / "tiny"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process uses, with an empty cache and no token."""
    with served() as found, used(found, tmp_path, monkeypatch):
        yield found


@pytest.fixture
def tiny(there: Hub) -> Repository:
    """The shipped model as `owner/tiny`, with files beside it that must not be fetched."""
    repository = Repository.of(TINY, revisions=("main", "v1"))
    junk = ("pytorch_model.bin", "modeling.py", "optimizer.pt", "original/consolidated.safetensors")
    repository.files |= dict.fromkeys(junk, b"never fetched")
    there.repositories["model", "owner/tiny"] = repository
    return repository


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", HubId("Qwen/Qwen2.5-VL-3B-Instruct")),
        ("lerobot/svla_so101_pickplace@v3.0", HubId("lerobot/svla_so101_pickplace", "v3.0")),
        ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
        ("model", None),
        ("/data/model", None),
        ("./owner/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("a/b@", None),
        ("a/b@../x", None),
        ("https://huggingface.co/a/b", None),
        ("a--b/c", None),
    ],
)
def test_what_is_an_id(name: str, found: HubId | None) -> None:
    assert HubId.parse(name) == found
    assert found is None or str(found) == name


def test_a_folder_wins(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/tiny", "model") == Path("owner/tiny")
    assert pinned("owner/tiny", "model") == "owner/tiny"
    assert there.requests == []


def test_a_model_by_its_id(there: Hub, tiny: Repository, capfd: pytest.CaptureFixture) -> None:
    folder = resolve("owner/tiny", "model", where="backbone.source")
    assert folder.name == tiny.commit
    mine = {path.name: path.read_bytes() for path in TINY.iterdir()}
    assert {path.name: path.read_bytes() for path in folder.rglob("*")} == mine
    assert there.files_asked() == set(mine)
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("[fetch owner/tiny] ") for line in lines), lines
    megabytes = -(-sum(map(len, mine.values())) // hub.MB)
    assert lines[-1].startswith(f"[fetch owner/tiny] {megabytes}/{megabytes}  ")
    assert lines[-1].endswith("  done")
    assert load_mllm(folder).model.dtype == load_mllm(TINY).model.dtype


def test_settings_are_a_model_without_weights(there: Hub, tiny: Repository) -> None:
    folder = resolve("owner/tiny", "settings")
    assert (folder / "config.json").is_file()
    assert there.files_asked() == {p.name for p in TINY.iterdir()} - {"model.safetensors"}


def test_keys_and_pins_name_the_commit(there: Hub, tiny: Repository, tmp_path: Path) -> None:
    commit = tiny.commit
    assert pinned("owner/tiny@v1", "model") == f"owner/tiny@{commit}"
    assert content_key("owner/tiny", "model") == commit
    assert content_key(str(TINY), "model") == hub.hash_tree(TINY)
    tiny.files["config.json"] += b"\n"  # the branch moves
    hub._fetched.cache_clear()
    asked = len(there.requests)
    assert resolve(f"owner/tiny@{commit}", "model").name == commit
    assert len(there.requests) == asked, "a commit that is in the cache needs no request"
    assert resolve("owner/tiny", "model").name == tiny.commit != commit


def test_offline(there: Hub, tiny: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    online = resolve("owner/tiny", "model")
    use_network(monkeypatch, False)
    assert resolve("owner/tiny", "model") == online
    with pytest.raises(RoboAlignError) as refused:
        resolve("owner/other", "model", where="backbone.source")
    assert refused.value.where == "backbone.source, owner/other"
    assert "HF_HUB_OFFLINE forbids fetching it" in refused.value.problem
    assert "unset HF_HUB_OFFLINE" in refused.value.fix


def test_no_network(there: Hub, tiny: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    online = resolve("owner/tiny", "model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub._fetched.cache_clear()
    assert resolve("owner/tiny", "model") == online
    with pytest.raises(RoboAlignError, match=r"http://127.0.0.1:9 cannot be reached"):
        resolve("owner/other", "model")


def test_what_cannot_be_had(there: Hub, tiny: Repository, tmp_path: Path) -> None:
    there.repositories["model", "owner/pickled"] = Repository(
        {"config.json": b"{}", "pytorch_model.bin": b""}
    )
    there.repositories["model", "owner/empty"] = Repository({"README.md": b""})
    for name, problem, fix in [
        ("owner/missing", "the Hub shows no such model", "correct the name; if the repository"),
        ("owner/tiny@v9", "no revision `v9`", f"a branch, tag or commit of {there.url}/owner/tiny"),
        ("owner/pickled", "no weights in safetensors", "pickled weights are never read"),
        ("owner/empty", "the repository has no config.json", "name a Hugging Face model"),
        (str(tmp_path / "no"), "no such file or folder", "a Hub id: owner/name or owner/name@rev"),
        ("tiny", "no such file or folder", "give a folder, or a Hub id"),
    ]:
        with pytest.raises(RoboAlignError) as refused:
            resolve(name, "model", where="here")
        assert refused.value.where == f"here, {name}"
        assert problem in refused.value.problem
        assert fix in refused.value.fix


def test_gated_private_and_tokens(
    there: Hub, tiny: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.gated = True
    there.repositories["model", "owner/private"] = Repository(tiny.files, private=True)
    with pytest.raises(RoboAlignError, match="only to those who accepted its terms") as refused:
        resolve("owner/tiny", "model")
    assert f"accept them at {there.url}/owner/tiny, then log in" in refused.value.fix
    with pytest.raises(RoboAlignError, match="no such model"):
        resolve("owner/private", "model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (resolve("owner/tiny", "model") / "model.safetensors").is_file()
    assert (resolve("owner/private", "model") / "model.safetensors").is_file()


def test_a_hub_that_is_down(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.broken = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # its retries
    with pytest.raises(RoboAlignError, match=r"fetching from .* failed \(.*503"):
        resolve("owner/tiny", "model")


def test_a_full_disk_stays_an_oserror(
    there: Hub, tiny: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        resolve("owner/tiny", "model")


def test_another_process_by_the_environment(there: Hub, tiny: Repository, tmp_path: Path) -> None:
    """As a user has it: HF_ENDPOINT and HF_HOME say where; nothing is patched."""
    environment = {**os.environ, "HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    code = "from roboalign.core.hub import resolve; print(resolve('owner/tiny@v1', 'model'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert (folder / "model.safetensors").read_bytes() == tiny.files["model.safetensors"]
