"""Select which weights of an MLLM are trained: all, all but the vision tower's, the connector's, or
adapters."""

from peft import LoraModel
from torch import nn

from roboalign.align.lora import LoraConfig, add_lora
from roboalign.align.train_config import TrainConfig
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm


class TuneConfig(TrainConfig):
    """Settings for training a complete MLLM: SFT and GRPO."""

    lora: LoraConfig | None = None
    """Train low-rank adapters and the rows of the action tokens, and merge them at the end
    (docs/how-to/train-lora.md). Without it, all weights are trained. With it, the vision tower is
    unchanged, whatever `freeze_vision` says."""

    def choose_trained(self, mllm: Mllm) -> LoraModel | None:
        """Freeze what these settings do not train. Returns the adapters, or None.

        Raises RoboAlignError in the cases of `add_lora` and `freeze_vision`.
        """
        if self.lora is not None:
            return add_lora(mllm, self.lora, self.seed)
        if self.freeze_vision:
            freeze_vision(mllm.model)
        return None


def freeze_vision(model: nn.Module) -> int:
    """Freeze all that turns an image into tokens: encoder, projector, separators. Returns the
    number of frozen parameters.

    This is every parameter outside the text model and its input and output embeddings, since the
    place and name of the projector differ between families. Raises RoboAlignError if the model has
    no vision tower under a name that transformers knows.
    """
    tower = model.get_encoder(modality="image")  # type: ignore[operator]
    frozen = {} if tower is model else vision_parameters(model)
    if not frozen:
        raise RoboAlignError(
            "freeze_vision is set, but the model has no vision tower",
            where=type(model).__name__,
            fix="set freeze_vision: false",
        )
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen.values())


def keep_connector_alone(model: nn.Module) -> int:
    """Freeze all but the connector from the vision encoder to the text model. Returns the number of
    trained parameters.

    Raises RoboAlignError if the connector is part of the encoder itself, as in Qwen's models.
    """
    tower = {id(parameter) for parameter in model.get_encoder(modality="image").parameters()}  # type: ignore[operator]
    connector = [
        parameter for parameter in vision_parameters(model).values() if id(parameter) not in tower
    ]
    if not connector:
        raise RoboAlignError(
            "the model has no projector apart from its vision encoder",
            where=type(model).__name__,
            fix="leave backbone.connector out: it is for models of LLaVA's kind",
        )
    model.requires_grad_(False)
    for parameter in connector:
        parameter.requires_grad_(True)
    return sum(parameter.numel() for parameter in connector)


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters outside the text model and the embeddings, by name."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    text = {id(parameter) for part in parts for parameter in part.parameters()}
    return {
        name: parameter for name, parameter in model.named_parameters() if id(parameter) not in text
    }
