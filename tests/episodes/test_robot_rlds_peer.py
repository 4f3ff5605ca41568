"""TensorFlow Datasets' own writer and reader against ours, on a data set of RLDS's form. Skipped where it is absent.

`python -m venv`, `pip install tensorflow-cpu tensorflow-datasets`, and this package in the same environment.
"""

import numpy as np
import pytest

from roboalign.core.outcomes import Fault
from roboalign.episodes.formats.rlds import read_rlds
from roboalign.episodes.open import open_robot_data

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")

LENGTHS = {"train": (5, 1, 9, 12, 3, 7), "val": (4, 2, 6)}


def frames(seed: int, length: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (length, 24, 32, channels), dtype=np.uint8)


def episode(seed: int, length: int) -> dict:
    """What is given to TFDS; the depth image and the flags are for the reader to leave alone."""
    rng = np.random.default_rng(seed)
    front, wrist, depth = (
        frames(seed, length),
        frames(seed + 100, length),
        frames(seed + 200, length, 1),
    )
    steps = [
        {
            "observation": {
                "image": front[t],
                "wrist_image": wrist[t],
                "depth": depth[t],
                "state": rng.normal(size=8).astype(np.float32),
            },
            "action": rng.normal(size=7).astype(np.float64),
            "discount": np.float32(1),
            "reward": np.float32(t == length - 1),
            "is_first": t == 0,
            "is_last": t == length - 1,
            "is_terminal": t == length - 1,
            "language_instruction": f"Öffne Schublade {seed}.",
            "language_embedding": rng.normal(size=512).astype(np.float32),
        }
        for t in range(length)
    ]
    return {"steps": steps, "episode_metadata": {"file_path": f"/raw/{seed}.npy"}}


class Made(tfds.core.GeneratorBasedBuilder):
    """A builder in the form of the templates by which data sets of Open X-Embodiment were made."""

    VERSION = tfds.core.Version("1.0.0")
    name = "made_robot"

    def _info(self):
        image = {"shape": (24, 32, 3), "dtype": np.uint8}
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "steps": features.Dataset(
                        {
                            "observation": features.FeaturesDict(
                                {
                                    "image": features.Image(**image, encoding_format="jpeg"),
                                    "wrist_image": features.Image(**image, encoding_format="png"),
                                    "depth": features.Image(
                                        shape=(24, 32, 1), dtype=np.uint8, encoding_format="png"
                                    ),
                                    "state": features.Tensor(shape=(8,), dtype=np.float32),
                                }
                            ),
                            "action": features.Tensor(shape=(7,), dtype=np.float64),
                            "discount": features.Scalar(dtype=np.float32),
                            "reward": features.Scalar(dtype=np.float32),
                            "is_first": features.Scalar(dtype=np.bool_),
                            "is_last": features.Scalar(dtype=np.bool_),
                            "is_terminal": features.Scalar(dtype=np.bool_),
                            "language_instruction": features.Text(),
                            "language_embedding": features.Tensor(shape=(512,), dtype=np.float32),
                        }
                    ),
                    "episode_metadata": features.FeaturesDict({"file_path": features.Text()}),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in LENGTHS}

    def _generate_examples(self, split):
        for number, length in enumerate(LENGTHS[split]):
            yield f"{split}-{number}", episode(number + 50 * (split == "val"), length)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    built = Made(data_dir=str(tmp_path_factory.mktemp("tfds")))
    config = tfds.download.DownloadConfig(num_shards=3)  # several shards a split
    built.download_and_prepare(download_config=config)
    return built


def by_instruction(split: str) -> dict[str, dict]:
    given = [
        episode(number + 50 * (split == "val"), length)
        for number, length in enumerate(LENGTHS[split])
    ]
    return {one["steps"][0]["language_instruction"]: one for one in given}


@pytest.mark.parametrize("split", LENGTHS)
def test_we_read_what_tfds_writes_as_tfds_does(builder, split):
    found = list(read_rlds(builder.data_path, split=split, fps=10, action="action", state="state"))
    assert not [item for item in found if isinstance(item, Fault)]
    as_stored = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    theirs = list(builder.as_dataset(split=split, shuffle_files=False, decoders=as_stored))
    assert len(found) == len(theirs) == len(LENGTHS[split])
    given = by_instruction(split)
    for ours, their in zip(
        found, theirs, strict=True
    ):  # TFDS shuffles by key; both read in the order of the files
        steps = list(their["steps"])
        source = given.pop(ours.instruction)["steps"]
        assert len(ours) == len(steps) == len(source) and sorted(ours.images) == [
            "image",
            "wrist_image",
        ]
        assert ours.instruction == steps[0]["language_instruction"].numpy().decode()
        np.testing.assert_array_equal(
            ours.actions, [step["action"].numpy().astype(np.float32) for step in steps]
        )
        np.testing.assert_array_equal(ours.actions, np.float32([step["action"] for step in source]))
        np.testing.assert_array_equal(
            ours.state, [step["observation"]["state"].numpy() for step in steps]
        )
        for t, step in enumerate(steps):
            np.testing.assert_array_equal(
                ours.frame("wrist_image", t), source[t]["observation"]["wrist_image"]
            )
            np.testing.assert_array_equal(
                ours.frame("wrist_image", t), step["observation"]["wrist_image"].numpy()
            )
            assert (
                ours.png("image", t) == step["observation"]["image"].numpy()
            )  # JPEG: decoders round differently
    assert not given


def test_all_splits_and_shards_are_found(builder):
    assert len(list(builder.data_path.glob("*train*.tfrecord-*-of-00003"))) == 3
    data = open_robot_data(str(builder.data_path), options={"fps": 10})
    assert (data.format, len(list(data)), data.faults) == ("rlds", 9, [])


def test_a_shard_that_is_not_there_is_named(builder, tmp_path):
    for path in builder.data_path.iterdir():
        if "train.tfrecord-00001" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    data = open_robot_data(tmp_path, options={"fps": 10})
    assert 0 < len(list(data)) < 9 and len(data.faults) == 1 and "00001" in str(data.faults[0])
