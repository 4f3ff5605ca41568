"""Write the policy as a folder that a vLLM server loads and reloads."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping

from roboalign.align.lora import merged_state
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, write_json
from roboalign.mllm.load import Mllm
from roboalign.mllm.processors import save_processor

_MARK = "roboalign-policy.json"  # marks a folder of policies, which may be replaced
SERVED = {
    "qwen2_5_vl": "qwen2_5_vl_vision",
    "qwen3_vl": "qwen3_vl_vision",
    "smolvlm": "smolvlm_vision",
    "llava": "clip_vision_model",
    "llava_onevision": "siglip_vision_model",
}
"""Models and their vision towers for which vLLM's answers were compared with those of
`generate`."""


def write_policy(mllm: Mllm, folder: str | Path, update: int) -> None:
    """Replace `folder` by the model after `update` updates, with adapters merged, through a new
    folder that is then renamed.

    An output embedding that is shared with the input is written as a separate weight: vLLM on a CPU
    packs a copy of it, which a reload of a shared one would not update. Raises RoboAlignError if
    `folder` contains anything but a policy, or if the model is not in SERVED.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / _MARK).is_file():
        raise RoboAlignError(
            "this folder contains something other than a policy written here",
            where=str(folder),
            fix="give rl.vllm.weights a new folder",
        )
    check_served(mllm.model.config)
    state, head = merged_state(mllm.model), "lm_head.weight"  # its name in all of these models
    shared = bool(mllm.model.config.tie_word_embeddings)
    if shared:
        state[head] = state[head].clone()
    with atomic_path(folder) as temporary:
        with published_names(mllm.model):
            mllm.model.save_pretrained(temporary, state_dict=state)
        save_processor(mllm.processor, temporary)
        if shared:
            path = temporary / "config.json"
            config = json.loads(path.read_text())
            for part in (config, config["text_config"]):
                part["tie_word_embeddings"] = False
            write_json(path, config)
        write_json(temporary / _MARK, {"update": update})


def check_served(config: Any) -> None:
    """Raise RoboAlignError for a model whose answers by vLLM were not compared with those of
    `generate`."""
    tower = config.vision_config.model_type
    if SERVED.get(config.model_type) != tower:
        raise RoboAlignError(
            f"how vLLM shows an image to a model of type {config.model_type} whose vision tower is of "
            f"type {tower} was not compared with the own loop",
            where="rl.vllm",
            fix=f"remove rl.vllm, or align one of: {', '.join(SERVED)}",
        )


@contextmanager
def published_names(model: Any) -> Iterator[None]:
    """Within this context, `model.save_pretrained` gives the weights the names of published models
    of its class.

    Otherwise the names are those of the folder that the model came from. A LLaVA built here has
    `vision_tower.embeddings` for `vision_tower.vision_model.embeddings`, which vLLM does not know.
    """
    before = getattr(model, "_weight_conversions", None)
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    try:
        yield
    finally:
        model._weight_conversions = before
