"""What each preset sends, to the last key and dtype, and what it takes from a reply."""

import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.harness.presets import checked_chunk, sent_image
from roboalign.harness.server import make_preset
from roboalign.harness.settings import (
    ClientConfig,
    WorldShape,
    read_gripper,
    resolved,
    world_defaults,
)
from roboalign.sim.base import EnvironmentCrash, Observation
from roboalign.sim.images import resize_with_padding

LIBERO = WorldShape("libero", ("agentview", "wrist"), 7, 8)
METAWORLD = WorldShape("world", ("corner2",), 4, 4)
OWN = {
    "observation": {
        "observation/corner2": {"camera": "corner2", "shape": [64, 64, 3]},
        "observation/state": {"dtype": "float32"},
        "prompt": {"dtype": "str"},
    },
    "horizon": 8,
}


def seen(world: WorldShape, size: int = 224) -> Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in world.cameras}
    return Observation(images, rng.normal(size=world.state_dim).astype(np.float32), "Pick it up.")


def preset_of(world: WorldShape, metadata=None, **settings):
    client = resolved(ClientConfig(**settings), world.section)
    return make_preset(client, world, metadata or {})


def test_openpi_is_sent_its_own_libero_keys():
    observation = seen(LIBERO)
    request = preset_of(LIBERO).request(observation, ("t", 3, 5))
    assert list(request) == [
        "observation/image",
        "observation/wrist_image",
        "observation/state",
        "prompt",
    ]
    np.testing.assert_array_equal(request["observation/image"], observation.images["agentview"])
    np.testing.assert_array_equal(request["observation/wrist_image"], observation.images["wrist"])
    assert request["observation/state"].dtype == np.float64
    np.testing.assert_array_equal(np.float32(request["observation/state"]), observation.state)
    assert request["prompt"] == "Pick it up."


def test_openpi_keys_of_other_benchmarks_and_given_ones():
    observation = seen(METAWORLD, 480)
    request = preset_of(METAWORLD).request(observation, ("t", 3, 5))
    assert list(request) == ["image", "state", "prompt"]
    assert request["image"].shape == (224, 224, 3) and request["state"].shape == (4,)
    two = WorldShape("other", ("top", "side"), 4, 4)
    assert list(
        preset_of(two, keys={"side": "wrist", "state": "s"}).request(seen(two), ("t", 0, 0))
    ) == [
        "image",
        "wrist",
        "s",
        "prompt",
    ]
    with pytest.raises(RoboAlignError, match=r"nothing called 'sid' is sent.*did you mean side"):
        preset_of(two, keys={"sid": "wrist"})
    with pytest.raises(RoboAlignError, match="two things have one key"):
        preset_of(two, keys={"side": "image"})


def test_images_are_resized_as_openpis_client_does():
    rng = np.random.default_rng(1)
    square = rng.integers(0, 256, (256, 256, 3), np.uint8)
    assert sent_image(square, None) is square
    np.testing.assert_array_equal(sent_image(square, 256), square)
    wide = np.full((10, 20, 3), 200, np.uint8)
    padded = resize_with_padding(wide, 41)  # 20.5 rows: the half is cut off, 21 are black
    assert (padded[10:30] == 200).all() and not padded[:10].any() and not padded[30:].any()
    theirs = pytest.importorskip("openpi_client.image_tools")
    for shape in ((256, 256), (480, 640), (64, 64), (300, 451)):
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        expected = theirs.resize_with_pad(image, 224, 224)
        np.testing.assert_array_equal(resize_with_padding(image, 224), expected)


def test_own_servers_get_what_their_metadata_names():
    observation = seen(METAWORLD, 64)
    request = preset_of(METAWORLD, OWN, preset="roboalign").request(observation, ("t", 3, 5))
    assert list(request) == ["observation/corner2", "observation/state", "prompt", "noise_key"]
    assert request["noise_key"] == ["t", 3, 5] and request["observation/state"].dtype == np.float32
    np.testing.assert_array_equal(request["observation/corner2"], observation.images["corner2"])
    with pytest.raises(RoboAlignError, match=r"sees camera 'corner2'.*--set cameras=\[corner2\]"):
        preset_of(WorldShape("world", ("workspace",), 4, 4), OWN, preset="roboalign")


def test_settings_of_the_benchmark_that_a_preset_assumes():
    fields = {"cameras", "image_size", "render"}
    own = world_defaults(ClientConfig(preset="roboalign"), "world", fields, OWN)
    assert own == {"cameras": ("corner2",), "image_size": 64}
    with pytest.raises(RoboAlignError, match="does not say what it wants"):
        world_defaults(ClientConfig(preset="roboalign"), "world", fields, {})
    others = world_defaults(ClientConfig(), "world", fields, {})
    assert others == {"cameras": ("corner2_near",), "image_size": 480, "render": "default"}
    assert world_defaults(ClientConfig(preset="groot"), "libero", fields, {}) == {"image_size": 256}
    assert world_defaults(ClientConfig(), "libero", fields, {}) == {}


def test_starvla_is_sent_one_flat_example():
    observation = seen(LIBERO, 256)
    preset = preset_of(LIBERO, {"available_unnorm_keys": ["franka"]}, preset="starvla")
    request = preset.request(observation, ("t", 0, 0))
    assert list(request) == [
        "examples",
        "unnorm_key",
        "do_sample",
        "use_ddim",
        "num_ddim_steps",
    ]
    (example,) = request["examples"]
    assert list(example) == ["image", "lang"] and example["lang"] == "Pick it up."
    assert [image.shape for image in example["image"]] == [(224, 224, 3)] * 2
    stateful = preset_of(LIBERO, preset="starvla", send_state=True)
    assert stateful.request(observation, ("t", 0, 0))["examples"][0]["state"].shape == (1, 8)


def test_starvla_needs_one_set_of_statistics():
    several = {"available_unnorm_keys": ["franka", "bridge"], "default_unnorm_key": None}
    with pytest.raises(RoboAlignError, match="franka, bridge, and none is chosen"):
        preset_of(LIBERO, several, preset="starvla")
    with pytest.raises(RoboAlignError, match="franka, bridge, not frank"):
        preset_of(LIBERO, several, preset="starvla", unnorm_key="frank")
    chosen = preset_of(LIBERO, several, preset="starvla", unnorm_key="bridge")
    assert chosen.request(seen(LIBERO), ("t", 0, 0))["unnorm_key"] == "bridge"


def test_starvla_replies():
    preset = preset_of(LIBERO, preset="starvla")
    actions = np.arange(14.0).reshape(1, 2, 7)
    reply = {"status": "ok", "ok": True, "data": {"actions": actions}}
    np.testing.assert_array_equal(preset.actions(reply), actions[0])
    with pytest.raises(EnvironmentCrash, match="the server: an error: out of memory"):
        preset.actions({"status": "error", "ok": False, "error": {"message": "out of\nmemory"}})
    with pytest.raises(EnvironmentCrash, match="it sends normalized actions"):
        preset.actions({"status": "ok", "data": {"normalized_actions": actions}})


@pytest.mark.parametrize(
    ("actions", "problem"),
    [
        (None, "no array of numbers, but NoneType"),
        ([[0.0] * 4] * 8, "no array of numbers, but list"),
        (np.full((8, 4), "a"), "no array of numbers, but <U1"),
        (np.zeros((1, 8, 4)), r"its chunk is \[1, 8, 4\], and an action here has 4 numbers"),
        (np.zeros((8, 7)), r"its chunk is \[8, 7\], and an action here has 4 numbers"),
        (np.zeros((4, 4)), "its chunk has 4 actions, and 5 are executed of each"),
        (np.where(np.eye(8, 4), np.nan, 0), "4 of the 32 numbers of its chunk are not finite"),
        (np.full((8, 4), 1e300), "32 of the 32 numbers of its chunk are not finite"),
    ],
)
def test_chunks_that_cannot_be_executed(actions, problem):
    with pytest.raises(EnvironmentCrash, match=problem):
        checked_chunk(actions, 4, 5)


@pytest.mark.parametrize(
    ("convention", "answered", "executed"),
    [
        ("as-is", [-1, 0.4, 1], [-1, 0.4, 1]),
        ("negate", [-1, 0.4, 1], [1, -0.4, -1]),
        ("sign", [-0.1, 0, 0.1], [-1, 1, 1]),
        ("open-is-1", [0, 0.25, 1], [1, 0.5, -1]),
        ("closed-is-1", [0, 0.25, 1], [-1, -0.5, 1]),
        ("open-is-1-sign", [0, 0.4, 0.5, 0.6, 1], [1, 1, 1, -1, -1]),
        ("closed-is-1-sign", [0, 0.4, 0.6, 1], [-1, -1, 1, 1]),
    ],
)
def test_gripper_conventions_by_hand(convention, answered, executed):
    chunk = np.zeros((len(answered), 3), np.float32)
    chunk[:, 2] = answered
    chunk[:, :2] = 0.3
    read = read_gripper(chunk, convention)
    np.testing.assert_allclose(read[:, 2], executed, atol=1e-6)
    np.testing.assert_array_equal(read[:, :2], chunk[:, :2])
    np.testing.assert_allclose(chunk[:, 2], answered, atol=1e-6)  # it is not changed in place


def test_defaults_of_the_presets():
    assert resolved(ClientConfig(), "libero").gripper == "as-is"
    assert resolved(ClientConfig(preset="starvla"), "libero").gripper == "open-is-1-sign"
    assert resolved(ClientConfig(preset="starvla"), "world").gripper == "as-is"
    assert resolved(ClientConfig(preset="starvla", gripper="negate"), "libero").gripper == "negate"
    assert resolved(ClientConfig(preset="groot"), "libero").image_size is None
    assert resolved(ClientConfig(image_size=96), "libero").image_size == 96
