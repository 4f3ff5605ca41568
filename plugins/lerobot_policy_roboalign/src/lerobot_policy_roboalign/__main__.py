"""Write what lerobot reads into a folder of `roboalign export policy`: config.json and processors.

python -m lerobot_policy_roboalign policies/pick_cube
"""

import argparse
import json
from pathlib import Path

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_roboalign.configuration_roboalign import RoboalignConfig
from lerobot_policy_roboalign.modeling_roboalign import IMAGES
from lerobot_policy_roboalign.processor_roboalign import make_roboalign_pre_post_processors


def write_lerobot_files(folder: Path) -> RoboalignConfig:
    """Write config.json, policy_preprocessor.json and policy_postprocessor.json.

    Raises ValueError if the folder is no exported policy, or does not say how large its images are.
    """
    if not (folder / "policy.json").is_file():
        raise ValueError(f"{folder} has no policy.json: give a folder of `roboalign export policy`")
    record = json.loads((folder / "policy.json").read_text())
    shape, facts = record.get("shape"), record.get("facts", {})
    if shape is None:
        raise ValueError(f"{folder}: only a policy with a head can be exported")
    inputs = {}
    for camera in record["view"]["cameras"]:
        size = facts.get("cameras", {}).get(camera)
        if size is None:
            raise ValueError(f"{folder}: the size of camera {camera} is not recorded: export it")
        inputs[IMAGES + camera] = PolicyFeature(FeatureType.VISUAL, (3, *size))
    if record["state_stats"] is not None or "relative" in record:
        inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (shape["state_dim"],))
    config = RoboalignConfig(
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (shape["action_dim"],))},
        chunk_size=shape["horizon"],
        n_action_steps=shape["horizon"],
        device="cpu",
    )
    for pipeline in make_roboalign_pre_post_processors(config):
        pipeline.save_pretrained(folder)
    config.device = None  # chosen where the policy is opened
    config.save_pretrained(folder)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        config = write_lerobot_files(options.folder)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    cameras = ", ".join(
        f"{key} {feature.shape[1]} x {feature.shape[2]}"
        for key, feature in config.image_features.items()
    )
    print(f"lerobot-eval --policy.path={options.folder} ...\n  cameras (height x width): {cameras}")


if __name__ == "__main__":
    main()
