"""The policy as a folder that a vLLM server loads, and loads again."""

import json
from pathlib import Path

from roboalign.align.lora import merged_state
from roboalign.errors import RoboAlignError
from roboalign.files import atomic_path, write_json
from roboalign.mllm.load import Mllm, save_processor, stock_files

MARK = "roboalign-policy.json"  # tells a folder of policies, which may be replaced, from any other


def write_policy(mllm: Mllm, folder: str | Path, update: int) -> None:
    """Replace `folder` by the model as it is after `update` updates, adapters merged; beside, then renamed.

    An output embedding that the model shares with its input is written as a weight of its own: vLLM on a CPU packs a
    copy of it, which a reload of a shared one leaves as it was. Raises RoboAlignError where something else stands at
    `folder`, or the model is of another family than Qwen2.5-VL and Qwen3-VL.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MARK).is_file():
        raise RoboAlignError("something else than a policy written here stands at this place", where=str(folder),
                             fix="give rl.vllm.weights a new folder")  # fmt: skip
    if not stock_files(mllm.processor):
        raise RoboAlignError(f"a model of type {mllm.model.config.model_type} is sampled by the own loop alone",
                             where="rl.vllm", fix="remove rl.vllm, or align a Qwen2.5-VL or Qwen3-VL")  # fmt: skip
    state, head = merged_state(mllm.model), "lm_head.weight"  # its name in both families
    shared = bool(mllm.model.config.tie_word_embeddings)
    if shared:
        state[head] = state[head].clone()
    with atomic_path(folder) as temporary:
        mllm.model.save_pretrained(temporary, state_dict=state)
        save_processor(mllm.processor, temporary)
        if shared:
            path = temporary / "config.json"
            config = json.loads(path.read_text())
            for part in (config, config["text_config"]):
                part["tie_word_embeddings"] = False
            write_json(path, config)
        write_json(temporary / MARK, {"update": update})
