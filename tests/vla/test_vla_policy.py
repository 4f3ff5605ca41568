import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from roboalign.actions.normalize import ActionStats
from roboalign.actions.relative import Relative
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.vla.features import FeatureConfig, View, compute_features
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy, policy_files

SMALL = {"width": 32, "heads": 2, "layers": 2, "vlm_inner_width": 32, "vlm_heads": 2}
SHAPE = HeadShape(vlm_width=48, action_dim=4, state_dim=3, horizon=5)


def observation(episode, t):
    images = {camera: episode.frame(camera, t) for camera in episode.images}
    return SimpleNamespace(images=images, state=episode.state[t], instruction=episode.instruction)


@pytest.fixture(scope="module")
def policy(mllm, episodes):
    torch.manual_seed(0)
    head = FlowMatchingHead(HeadConfig(**SMALL, proprioception=True), SHAPE)
    actions, states = (
        np.concatenate([getattr(e, name) for e in episodes]) for name in ("actions", "state")
    )
    view = View(layer=2, cameras=("wrist",))
    return HeadPolicy(mllm, head.eval(), view, ActionStats.fit(actions), ActionStats.fit(states))


@pytest.fixture
def saved(policy, backbone, tmp_path):
    """(policy folder, its policy.json as a dict) with a backbone of its own beside it."""
    shutil.copytree(backbone, tmp_path / "backbone")
    policy.save(tmp_path / "arm" / "policy")
    record = json.loads((tmp_path / "arm" / "policy" / "policy.json").read_text())
    record["backbone"]["path"] = "../../backbone"
    (tmp_path / "arm" / "policy" / "policy.json").write_text(json.dumps(record))
    return tmp_path / "arm" / "policy", record


def test_chunks_are_raw_and_do_not_depend_on_the_batch(policy, episodes):
    observations = [observation(episodes[n], 1) for n in range(3)]
    keys = [("task", seed, 0) for seed in range(3)]
    together = policy.act_batch(observations, keys)
    assert together.shape == (3, 5, 4)
    for row in (2, 0, 1):
        np.testing.assert_allclose(
            policy.act(observations[row], keys[row]), together[row], atol=1e-4
        )
    assert np.abs(policy.act(observations[0], ("task", 9, 0)) - together[0]).max() > 1e-3
    # Raw units: the statistics' map of what the head samples.
    policy.head.eval()
    states, mask = policy.view.encode(
        policy.mllm, [policy.view.prompt(observations[0].images, "open the drawer")]
    )
    state = torch.from_numpy(policy.state_stats.normalize(observations[0].state[None]))
    sampled = policy.head.sample(states.float(), mask, state, policy.noise(keys[0])[None])
    np.testing.assert_allclose(
        policy.action_stats.denormalize(sampled[0].numpy()), together[0], atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8"])
def test_serving_sees_what_training_saw(policy, mllm, episodes, tmp_path, dtype):
    view = policy.view.model_copy(update={"dtype": dtype})
    store = compute_features(mllm, episodes[:1], view, FeatureConfig(batch_size=1), tmp_path)
    trained, _ = store.gather(np.array([3]))
    seen = observation(episodes[0], 3)
    served, _ = view.encode(mllm, [view.prompt(seen.images, seen.instruction)])
    assert torch.equal(trained, served)


def test_save_and_load_act_the_same(policy, episodes, saved):
    folder, _ = saved
    loaded = Policy.load(folder)
    seen = [observation(episodes[n], 2) for n in range(2)]
    keys = [("a", 0), ("b", 0)]
    np.testing.assert_array_equal(loaded.act_batch(seen, keys), policy.act_batch(seen, keys))
    assert loaded.view == policy.view
    assert sum(p.numel() for p in loaded.mllm.model.parameters()) < sum(
        p.numel() for p in policy.mllm.model.parameters()
    )  # the layers above are gone


@pytest.fixture(scope="module")
def relative():
    space = ActionSpace(control="joint", mode="absolute", joints=3, gripper="closed_one")
    return Relative(space=space, pairs=((0, 2), (2, 1)))


def test_relative_actions_are_undone_once(policy, episodes, relative, tmp_path):
    """The same head, noise and statistics: only the named dimensions differ, by the state."""
    moved = dataclasses.replace(policy, relative=relative)
    moved.save(tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "policy.json").read_text())["format"] == 2
    seen = [observation(episodes[n], 1) for n in range(3)]
    keys = [("task", seed, 0) for seed in range(3)]
    plain = policy.act_batch(seen, keys)
    wanted = plain.copy()
    for row, one in enumerate(seen):
        wanted[row, :, 0] += one.state[2]
        wanted[row, :, 2] += one.state[1]
    for found in (moved, Policy.load(tmp_path / "policy")):
        np.testing.assert_allclose(found.act_batch(seen, keys), wanted, atol=1e-4)
        answers, _ = found.answers(seen, keys, 2)
        np.testing.assert_allclose(answers[:, 0], wanted, atol=1e-4)
    assert moved.state_dim == 3 and dataclasses.replace(moved, state_stats=None).state_dim == 3
    np.testing.assert_allclose(
        moved.normalized(wanted[0], seen[0]), policy.normalized(plain[0], seen[0]), atol=1e-4
    )
    short = SimpleNamespace(**{**vars(seen[0]), "state": np.zeros(2, np.float32)})
    with pytest.raises(RoboAlignError, match="state"):
        moved._starts([short])


def test_the_rest_of_a_chunk_guides_from_its_new_state(policy, episodes, relative):
    moved = dataclasses.replace(policy, relative=relative)
    seen, rest = observation(episodes[0], 1), np.full((5, 4), 0.25, np.float32)
    counted = rest - np.array([seen.state[2], 0, seen.state[1], 0], np.float32)
    key = [("task", 0, 0)]
    wanted = policy.act_batch([seen], key, guides=[(counted, 2)])
    found = moved.act_batch([seen], key, guides=[(rest, 2)])
    np.testing.assert_allclose(
        found - wanted, np.broadcast_to(rest - counted, found.shape), atol=1e-4
    )


def test_what_is_above_the_layer_is_neither_kept_nor_computed(policy, episodes, saved):
    """Of the three layers the head reads the second; nothing needs the output layer."""
    whole, loaded, ran = policy.mllm.model, Policy.load(saved[0]).mllm.model, []
    assert (len(whole.get_decoder().layers), len(loaded.get_decoder().layers)) == (3, 2)
    parts = [*whole.get_decoder().layers, whole.get_output_embeddings()]
    hooks = [
        part.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, part in enumerate(parts)
    ]
    policy.act(observation(episodes[0], 1), ("a", 0))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


@pytest.mark.usefixtures("shapes_unchecked")  # torch.compile does not trace the checks
def test_a_compiled_policy_acts_the_same(policy, episodes, saved, monkeypatch):
    """`aot_eager` traces as torch.compile's own backend does, which takes minutes on a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    compiled = Policy.load(saved[0], compile=True)
    for episode in episodes[:3]:  # instructions of other lengths
        seen = [observation(episode, 2)]
        np.testing.assert_allclose(
            compiled.act_batch(seen, [("a", 0)]), policy.act_batch(seen, [("a", 0)]), atol=1e-4
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    torch._dynamo.reset()


def test_the_precision_of_the_backbone_is_that_of_the_heads_training(policy, backbone, tmp_path):
    shutil.copytree(backbone, tmp_path / "backbone")
    half = load_mllm(tmp_path / "backbone", dtype=torch.bfloat16)
    dataclasses.replace(policy, mllm=half).save(tmp_path / "policy")
    assert Policy.load(tmp_path / "policy").mllm.model.dtype == torch.bfloat16
    policy.save(tmp_path / "other")
    record = json.loads((tmp_path / "other" / "policy.json").read_text())
    assert record["backbone"]["dtype"] == "float32"


def test_a_copy_of_what_a_policy_consists_of_acts_the_same(policy, episodes, saved, tmp_path):
    (tmp_path / "backbone" / "checkpoints").mkdir()
    (tmp_path / "backbone" / "checkpoints" / "optimizer.pt").write_text("large")
    inside, files = policy_files(saved[0])
    assert (
        inside == "arm/policy"
        and "backbone/config.json" in files
        and not any("optimizer" in name for name in files)
    )
    for name, file in files.items():
        (tmp_path / "elsewhere" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "elsewhere" / name)
    shutil.rmtree(tmp_path / "backbone")
    seen = [observation(episodes[0], 2)]
    there = Policy.load(tmp_path / "elsewhere" / inside)
    np.testing.assert_array_equal(
        there.act_batch(seen, [("a", 0)]), policy.act_batch(seen, [("a", 0)])
    )
    with pytest.raises(RoboAlignError, match="does not exist"):
        policy_files(saved[0])


def test_policy_json_names_the_backbone_relative_to_itself(policy, backbone, tmp_path):
    policy.save(tmp_path / "deep" / "policy")
    record = json.loads((tmp_path / "deep" / "policy" / "policy.json").read_text())
    assert not record["backbone"]["path"].startswith("/")
    assert (
        tmp_path / "deep" / "policy" / record["backbone"]["path"]
    ).resolve() == backbone.resolve()
    assert Policy.load(tmp_path / "deep" / "policy").horizon == 5


def drop(*path):
    def edit(record):
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return edit


def put(value, *path):
    def edit(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("action_stats"), "action_stats"),
        (drop("action_stats", "q99"), "action_stats.*q99"),
        (put(None, "action_stats"), "action_stats: the statistics are missing"),
        (put(None, "state_stats"), "state_stats: the statistics are missing"),
        (put([1.0], "action_stats", "mean"), "action_stats"),
        (put([float("nan")] * 4, "action_stats", "q01"), "action_stats"),
        (put(3, "shape", "action_dim"), "action_stats: statistics of 4 dimensions for a head of 3"),
        (put(7, "shape", "horizon"), "head.safetensors.*positions"),
        (put("five", "shape", "horizon"), "'shape.horizon'"),
        (put(31, "head", "width"), "'head'"),
        (put(1, "head", "widht"), "'head.widht'"),
        (put(1, "view", "zoom"), "'view.zoom'"),
        (drop("view", "cameras"), "'view.cameras'"),
        (put(9, "view", "layer"), "layer 9 of"),
        (put(0, "sampling_steps"), "sampling_steps"),
        (put("0" * 64, "backbone", "sha256"), "sha256 differs"),
        (put("int8", "backbone", "dtype"), "'backbone.dtype'"),
        (put("../nowhere", "backbone", "path"), "nowhere does not exist"),
        (drop("backbone", "sha256"), "backbone.sha256"),
        (put(3, "format"), "not a policy of format 1 or 2"),
        (put(2, "format"), "format 2 and field 'relative' contradict each other"),
        (put({}, "relative"), "format 1 and field 'relative' contradict each other"),
    ],
)
def test_a_broken_policy_json_is_refused_by_name(saved, edit, message):
    folder, record = saved
    edit(record)
    (folder / "policy.json").write_text(json.dumps(record))
    with pytest.raises(RoboAlignError, match=message):
        Policy.load(folder)


def test_other_backbone_weights_are_refused(saved):
    folder, _ = saved
    weights = next((folder.parents[1] / "backbone").glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(RoboAlignError, match="sha256 differs"):
        Policy.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_truncated_head_weights_are_refused(saved, keep):
    folder, _ = saved
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RoboAlignError, match=r"head\.safetensors"):
        Policy.load(folder)


def test_nan_head_weights_are_refused(saved):
    from safetensors.torch import load_file, save_file

    folder, _ = saved
    weights = load_file(folder / "head.safetensors")
    weights["positions"][0, 0] = float("nan")
    save_file(weights, folder / "head.safetensors")
    with pytest.raises(RoboAlignError, match=r"head\.safetensors: .*sha256 differs"):
        Policy.load(folder)
    described = json.loads((folder / "policy.json").read_text())
    described["head_sha256"] = hash_file(folder / "head.safetensors")
    (folder / "policy.json").write_text(json.dumps(described))
    with pytest.raises(RoboAlignError, match=r"head\.safetensors.*positions.*not finite"):
        Policy.load(folder)


def test_a_folder_without_policy_json_is_refused(tmp_path):
    with pytest.raises(RoboAlignError, match=r"policy\.json: the file does not exist"):
        Policy.load(tmp_path)


def test_a_wrong_observation_is_refused(policy, episodes):
    seen = observation(episodes[0], 0)
    with pytest.raises(RoboAlignError, match="camera 'wrist'"):
        policy.act(
            SimpleNamespace(
                images={"front": seen.images["front"]}, state=seen.state, instruction="go"
            )
        )
    with pytest.raises(RoboAlignError):
        policy.act(SimpleNamespace(images=seen.images, state=np.zeros(5), instruction="go"))
    with pytest.raises(RoboAlignError, match="1 observations but 2 noise keys"):
        policy.act_batch([seen], ["a", "b"])


def test_a_backbone_of_another_prompt_style_is_refused(policy, backbone, tmp_path):
    """The head would read hidden states of a question that its backbone was never asked."""
    mllm = load_mllm(backbone)
    mllm.prompts = "paper"
    save_mllm(mllm, tmp_path / "backbone")
    other = HeadPolicy(
        load_mllm(tmp_path / "backbone"),
        policy.head,
        policy.view,
        policy.action_stats,
        policy.state_stats,
    )
    other.save(tmp_path / "arm" / "policy")
    with pytest.raises(RoboAlignError) as error:
        Policy.load(tmp_path / "arm" / "policy")
    assert error.value.problem == "the model has prompts of the style `paper`, not `labelled`"
    other.view = policy.view.model_copy(update={"prompts": "paper"})
    other.save(tmp_path / "arm" / "paper")
    view = Policy.load(tmp_path / "arm" / "paper").view
    image = np.zeros((4, 4, 3), np.uint8)
    assert view.prompt({"wrist": image}, "open the drawer").question == (
        "Task: open the drawer. Predict the robot's next actions."
    )
