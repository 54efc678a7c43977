# SPDX-License-Identifier: Apache-2.0
"""Sources of live frames: webcams, network cameras, files played at their own speed, iterables."""

import logging
import re
import threading
import time as clock
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from emoclip.faces.boxes import check_frame
from emoclip.faces.detection import opencv
from emoclip.video.frames import FrameSequence
from emoclip.video.sources import check_fps, open_frames
from modeling_emoclip.video_limits import VideoLimits
from modeling_emoclip.video_streams import decoded_frames, upright

logger = logging.getLogger(__name__)

# Non-decreasing time in seconds, and a function that returns the frame (H, W, 3), uint8, RGB: not all are converted.
TimedPixels = tuple[float, Callable[[], np.ndarray]]
_TIMEOUT = 10.0  # seconds to wait for a response or packet from a network camera
_LONGEST_STEP = 10.0  # seconds between frames; more, or less than 0, means that the camera has reset its clock
_RTSP_OPTIONS = {"rtsp_transport": "tcp"}  # over UDP every lost packet corrupts a frame
_HOST_AND_PORT = r"(\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::\d*)?"


def frames_of(
    source: Any,
    fps: float | None,
    live: bool,
    stop: threading.Event,
    limits: dict | VideoLimits | None = None,
    guarded: bool = True,
) -> Iterator[TimedPixels]:
    """Returns a lazy iterator over the frames of a source, see `EmotionStream.run`.

    Args:
        live: play files at their own speed, and time frames without a time stamp by the clock.
        stop: ends the wait for the next frame of a file.
        limits, guarded: options for files, see `open_frames`.

    Raises:
        OSError, ValueError: the source cannot be opened, reading it fails, or frames without time stamps need `fps`.
        ImportError: the source is a webcam and OpenCV is not installed.
    """
    if fps is not None:
        check_fps(fps)
    if isinstance(source, int):
        return _webcam(source)
    if isinstance(source, str) and "://" in source:
        return _network(source)
    if isinstance(source, (str, bytes, dict, list, tuple, Path, np.ndarray, torch.Tensor)):
        return _video(open_frames(source, fps, limits, guarded), live, stop)
    if not isinstance(source, Iterable):
        raise ValueError(f"source is {source!r}, but must be a webcam's number, an address, a video or an iterable")
    if fps is None and not live:
        raise ValueError("with drop=False results depend on the frames' times: give fps, their number per second")
    return _iterable(source, fps)


def as_pixels(frame: Any) -> np.ndarray:
    """Converts a PIL image or array to `(H, W, 3)`, uint8, RGB. Raises `ValueError` for anything else."""
    frame = np.asarray(frame.convert("RGB")) if isinstance(frame, Image.Image) else frame
    check_frame(frame)
    return frame


def _iterable(source: Iterable, fps: float | None) -> Iterator[TimedPixels]:
    start = None
    for index, frame in enumerate(source):
        start = clock.monotonic() if start is None else start
        time = clock.monotonic() - start if fps is None else index / fps
        yield time, as_pixels(frame).copy


def _video(frames: FrameSequence, live: bool, stop: threading.Event) -> Iterator[TimedPixels]:
    start = clock.monotonic()
    for frame in frames:
        if live and stop.wait(max(0.0, frame.time - frames.start - (clock.monotonic() - start))):
            return
        yield frame.time, partial(frames.pixels_of, frame)
    if frames.error:
        logger.warning(frames.error)


def _webcam(number: int) -> Iterator[TimedPixels]:
    if (cv2 := opencv()) is None:  # PyAV wheels cannot open webcams
        raise ImportError(f"webcam {number} needs OpenCV: pip install emoclip[faces] (or push frames of your own)")
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise OSError(f"webcam {number} cannot be opened: there is none, or another program has it")
        start = clock.monotonic()
        while True:
            is_there, frame = camera.read()
            if not is_there:
                raise OSError(f"webcam {number} gives no more frames")
            yield clock.monotonic() - start, partial(cv2.cvtColor, frame, cv2.COLOR_BGR2RGB)
    finally:
        camera.release()


def _network(address: str) -> Iterator[TimedPixels]:
    name = _scheme_and_host(address)  # messages may be logged, so they must not contain passwords
    options = _RTSP_OPTIONS if address.lower().startswith("rtsp") else {}
    time = offset = None
    try:
        with av.open(address, options=options, timeout=_TIMEOUT) as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # frame threads can hang alongside those of torch
            step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
            for frame in decoded_frames(container, stream):
                expected = 0.0 if time is None else time + step
                stamp = expected if frame.pts is None else float(frame.pts * frame.time_base)
                if time is None or not 0 <= stamp - offset - time <= _LONGEST_STEP:
                    offset = stamp - expected
                time = stamp - offset
                yield time, partial(upright, frame)
    except av.error.FFmpegError as error:
        far = "cannot be opened" if time is None else f"cannot be read further than {time:.1f} s"
        raise OSError(f"{name} {far} ({error.strerror})") from None


def _scheme_and_host(address: str) -> str:
    """Returns the scheme and host of an address, without user, password, path, token or anything that may be one.

    A password may contain an unescaped `@`, `/`, `?` or `#`, and its end is then ambiguous. The host is shown in that
    case only if the address contains exactly one `@`.
    """
    scheme, _, rest = address.partition("://")
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        return "an address"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    host = re.fullmatch(_HOST_AND_PORT, authority)
    if host is None and rest.count("@") == 1:
        host = re.fullmatch(_HOST_AND_PORT, re.split(r"[/?#]", rest.partition("@")[2], maxsplit=1)[0])
    return f"{scheme}://{host[1] if host else '…'}"


__all__ = ["TimedPixels", "as_pixels", "frames_of"]
