"""What lmms-eval loads at its start by our entry point `lmms_eval.models`."""

from typing import Any


def manifest() -> Any:
    """Return the registration of the model `roboalign`; its class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("roboalign", chat_class_path="roboalign.bench.lmms.LmmsModel")
