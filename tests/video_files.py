# SPDX-License-Identifier: Apache-2.0
"""Video files for the tests, whose frames tell their own numbers."""

import av
import numpy as np


def write_video(path, num_frames=40, width=96, height=64, codec="libx264", rotation=None, times=None, **options):
    """The left half tells the number of the frame; the upper right quarter is red."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = width, height, "yuv420p", 10
        stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24")
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture(index, width=96, height=64):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 6 * index
    pixels[: height // 2, width // 2 :] = [200, 30, 30]
    return pixels


def numbers_of(frames):
    """The frame numbers that `picture` wrote, from frames (T, H, W, 3)."""
    height, width = frames.shape[1:3]
    return np.rint(frames[:, height // 2, width // 4].mean(-1) / 6).astype(int).tolist()
