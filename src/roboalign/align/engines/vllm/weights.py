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
"""Models, with the vision tower of each, whose answers by vLLM were compared with those of `generate`."""


def write_policy(mllm: Mllm, folder: str | Path, update: int) -> None:
    """Replace `folder` by the model as it is after `update` updates, adapters merged; beside, then renamed.

    An output embedding that the model shares with its input is written as a weight of its own: vLLM on a CPU packs a
    copy of it, which a reload of a shared one leaves as it was. Raises RoboAlignError where something else stands at
    `folder`, or the model is none of those SERVED.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / _MARK).is_file():
        raise RoboAlignError(
            "something else than a policy written here stands at this place",
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
    """Raises RoboAlignError for a model whose answers by vLLM were not compared with those of the own loop."""
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
    """Within, `model.save_pretrained` names the weights as the published models of its class do.

    Else the names are those of the folder that the model came from. A LLaVA that was built here, not published, has
    `vision_tower.embeddings` for `vision_tower.vision_model.embeddings`, which vLLM does not know.
    """
    before = getattr(model, "_weight_conversions", None)
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    try:
        yield
    finally:
        model._weight_conversions = before
