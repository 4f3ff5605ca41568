"""Reference pictures of initial conditions, small enough to be a part of the plan."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable
from roboalign.trial.study import Study

_SIDE = 960
"""Longest side of a kept picture, in pixels."""
_QUALITY = 80


def read_pictures(study: Study, folder: Path) -> dict[str, dict[str, str]]:
    """Return task -> condition -> JPEG in base64, of the pictures that a study in `folder` names.

    Raises RoboAlignError naming the picture that cannot be read.
    """
    return {
        name: {condition: _shrunken(folder / file) for condition, file in task.pictures.items()}
        for name, task in study.tasks.items()
        if task.pictures
    }


def _shrunken(path: Path) -> str:
    check_readable(path, fix="correct the path under `pictures`")
    written = io.BytesIO()
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RoboAlignError(
            f"it cannot be read as a picture ({reason})", where=str(path), fix="give a JPEG or PNG"
        ) from None
    upright.thumbnail((_SIDE, _SIDE))
    upright.save(written, "JPEG", quality=_QUALITY)
    return base64.b64encode(written.getvalue()).decode()
