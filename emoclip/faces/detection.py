# SPDX-License-Identifier: Apache-2.0
"""Face detectors: callables `frame (H, W, 3), uint8, RGB -> float array (n, 5)`, x0, y0, x1, y1 in pixels and a score.

A frame without a face gives `(0, 5)`.
"""

import hashlib
import os
import threading
import warnings
from collections.abc import Callable

import numpy as np
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from .boxes import check_boxes, check_frame

# 233 kB; needs OpenCV 4.8 or newer. Pinned to one revision, since scores depend on the detector.
YUNET = {
    "repo_id": "opencv/face_detection_yunet",
    "filename": "face_detection_yunet_2023mar.onnx",
    "revision": "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
}
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LONGEST_SIDE = 640  # pixels; the built-in detectors get smaller frames, which bounds their cost for every video
SMALLEST_FACE = 1 / 15  # of the short side, 24 pixels of 360; for Haar, which finds many false faces below it


def opencv():
    """Returns the OpenCV module, or `None` if it is missing; its import takes as long as all others together."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def load_face_detector(name: str | os.PathLike | Callable[[np.ndarray], np.ndarray] = "auto") -> "FaceDetector":
    """Loads a face detector, whose `.name` says which one it is.

    - "yunet": OpenCV's small network, from the Hub or its cache (`OSError` if it cannot be fetched), or a path to its
      .onnx file.
    - "haar": the cascades shipped with OpenCV 4; they need no network, but find few tilted or hidden faces.
    - "auto": YuNet if its file is cached or the Hub answers within seconds, otherwise Haar, with a warning.
    - a callable: your own. Its boxes are checked and clipped; those that score under 0.5 start no track.
    """
    if callable(name):
        return FaceDetector(name, getattr(name, "name", getattr(name, "__name__", type(name).__name__)), np.inf)
    if not hasattr(opencv(), "CascadeClassifier"):  # OpenCV 5 has none
        raise ImportError("the built-in face detectors need OpenCV 4: pip install emoclip[faces]; or pass your own")
    path = os.fspath(name)
    if path not in ("auto", "haar", "yunet") and not path.endswith(".onnx"):
        raise ValueError(f"{path!r} is no face detector: give auto, haar, yunet, the path of an .onnx, or a callable")
    if path == "yunet":
        path = _checked_yunet(hf_hub_download(**YUNET, token=False))
    elif path == "auto":
        path = _quickly_fetched_yunet() or "haar"
    return FaceDetector(_Haar(), "haar") if path == "haar" else FaceDetector(_YuNet(path), "yunet")


class FaceDetector:
    """A detector with checked inputs and outputs, which gets frames of at most `longest_side` pixels."""

    def __init__(self, find: Callable[[np.ndarray], np.ndarray], name: str, longest_side: float = LONGEST_SIDE):
        self.find, self.name, self.longest_side = find, name, longest_side
        self._lock = threading.Lock()  # OpenCV's detectors have state

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Returns boxes `(n, 5)`, float32, within the frame. Raises a ValueError for anything but an RGB frame."""
        check_frame(frame)
        height, width = frame.shape[:2]
        scale = self.longest_side / max(height, width)
        if scale >= 1:
            return check_boxes(self._found(frame), frame, self.name)
        cv2 = opencv()
        size = max(1, round(width * scale)), max(1, round(height * scale))
        boxes = self._found(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        boxes[:, :4] *= [width / size[0], height / size[1]] * 2
        return check_boxes(boxes, frame, self.name)

    def _found(self, frame: np.ndarray) -> np.ndarray:
        with self._lock:
            return self.find(frame)


class _Haar:
    """OpenCV's frontal cascade; if it finds no face, the profile cascade on the frame and its mirror image.

    Cascades give no probability: the score grows with the number of windows that agree. Nearly all false faces in a
    film of a stage, most of them profiles, scored under 0.5 and so started no track.
    """

    def __init__(self):
        cv2 = opencv()
        # In unequalised grey, alt2 found next to no false face there; equalising, or the popular `default`, many.
        self.frontal = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
        self.profile = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_profileface.xml")  # of one side

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        cv2 = opencv()
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        smallest = [max(20, round(min(grey.shape) * SMALLEST_FACE))] * 2  # the cascades themselves cannot see under 20
        boxes, windows = self.frontal.detectMultiScale2(grey, scaleFactor=1.1, minNeighbors=3, minSize=smallest)
        if len(boxes):
            return _corners(boxes, np.ravel(windows) / (np.ravel(windows) + 5))
        found = []
        for image in (grey, np.ascontiguousarray(grey[:, ::-1])):
            boxes, windows = self.profile.detectMultiScale2(image, scaleFactor=1.2, minNeighbors=4, minSize=smallest)
            found.append(np.column_stack([np.reshape(boxes, (-1, 4)), np.ravel(windows)]).astype(np.float64))
        found[1][:, 0] = grey.shape[1] - found[1][:, 0] - found[1][:, 2]
        both = np.concatenate(found)
        both = both[np.array(cv2.dnn.NMSBoxes(both[:, :4], both[:, 4], 0.0, 0.3), dtype=int)]
        return _corners(both[:, :4], both[:, 4] / (both[:, 4] + 19))


class _YuNet:
    def __init__(self, path: str):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} is no file, but must be a network of YuNet's kind, .onnx")
        cv2 = opencv()
        try:
            # OpenCV's default of 0.9 is for photographs; the blurred and half-hidden faces of films score less.
            self.network = cv2.FaceDetectorYN.create(path, "", (320, 320), score_threshold=0.7)
        except cv2.error as error:
            raise ValueError(f"{path} is no network of YuNet's kind, or damaged ({error})") from None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.network.setInputSize((frame.shape[1], frame.shape[0]))
        found = self.network.detect(np.ascontiguousarray(frame[..., ::-1]))[1]  # BGR
        found = np.zeros((0, 15)) if found is None else found  # box, five landmarks, score
        return _corners(found[:, :4], found[:, 14])


def _corners(boxes, scores: np.ndarray) -> np.ndarray:
    """Converts x, y, width, height and a score to x0, y0, x1, y1, score."""
    boxes = np.reshape(boxes, (-1, 4)).astype(np.float64)
    return np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:], scores])


def _quickly_fetched_yunet() -> str | None:
    try:
        path = try_to_load_from_cache(**YUNET)
        if not isinstance(path, str):
            # Asked once and shortly, because hf_hub_download alone tries for half a minute where there is no network.
            get_hf_file_metadata(hf_hub_url(**YUNET), timeout=3, token=False)
            path = hf_hub_download(**YUNET, token=False)
        return _checked_yunet(path)
    except Exception as error:  # whatever keeps it away, there is another detector
        warnings.warn(
            f"faces are looked for with haar, which finds fewer faces than yunet, whose file cannot be had: "
            f"{type(error).__name__}: {error}. Scores depend on the detector; detector='haar' or 'yunet' fixes it.",
            stacklevel=3,
        )
    return None


def _checked_yunet(path: str) -> str:
    """`path`, if YuNet's file is there. Raises `OSError` for another file."""
    with open(path, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != YUNET_SHA256:
        raise OSError(f"{path} is not YuNet's file: its sha256 is {found}, but must be {YUNET_SHA256}; delete it")
    return path


__all__ = ["FaceDetector", "load_face_detector", "opencv"]
