"""Videos whose frames tell their number."""

from pathlib import Path

import av
import numpy as np

SIZE, LENGTH, FPS = 48, 300, 20
ENCODERS = {"libx264": {"sc_threshold": "0", "bf": "2"}, "libsvtav1": {"preset": "8"}}


def picture(number: int, size: int = SIZE) -> np.ndarray:
    """A frame that tells its number: bit b of it is the brightness of block b of 3 x 3."""
    bits = (number >> np.arange(9) & 1).reshape(3, 3).astype(np.uint8) * 255
    return np.repeat(
        np.kron(bits, np.ones((size // 3, size // 3), np.uint8))[..., None], 3, axis=-1
    )


def number_in(frame: np.ndarray) -> int:
    third = len(frame) // 3
    middles = frame[third // 2 :: third, third // 2 :: third, 0] > 127
    return int((middles.ravel() << np.arange(9)).sum())


def write_video(
    path: Path, numbers, *, gop=10, codec="libx264", fps=FPS, size=SIZE, options=(), movflags=None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        stream.options = ENCODERS[codec] | dict(options)
        for number in numbers:
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            ):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
