# SPDX-License-Identifier: Apache-2.0
"""Faces: find them in a frame, follow them through a video, crop them as the data sets' clips are cropped.

A detector is any callable `frame (H, W, 3), uint8, RGB -> float array (n, 5)`: x0, y0, x1, y1 in pixels and a score.
No face is an answer like any other: `(0, 5)`, and an empty list of `Face`.
"""

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from PIL import Image

# 233 kB; needs OpenCV 4.8 or newer. Of one revision, and nothing else is opened: scores depend on who finds the faces.
YUNET = {
    "repo_id": "opencv/face_detection_yunet",
    "filename": "face_detection_yunet_2023mar.onnx",
    "revision": "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
}
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LONGEST_SIDE = 640  # of the picture that the built-in detectors look at: it bounds their cost for every video
SMALLEST_FACE = 1 / 15  # of the short side; for Haar only, which would see many more false ones: 24 pixels of 360
# Weights of a face's middle in `describe_face`: what is around it says more about the place than about the person.
_MIDDLE = np.exp(-((np.mgrid[:64, :64] - 31.5) ** 2).sum(axis=0) / (2 * 16**2))


def opencv():
    """The module, or `None` where it is missing; imported late, since that takes as long as all else here together."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


@dataclass(frozen=True, eq=False)  # eq: arrays do not compare to one bool
class Face:
    """A face in one frame: whose it is, `(x0, y0, x1, y1)` in pixels, and the detector's score."""

    person: int
    box: np.ndarray
    score: float


def load_face_detector(name: str | os.PathLike | Callable[[np.ndarray], np.ndarray] = "auto") -> "FaceDetector":
    """A face detector by name; which one it became, its `.name` says.

    - "yunet": OpenCV's small network, from the Hub or its cache (`OSError` if not to be had), or a path to its .onnx.
    - "haar": the cascades that OpenCV 4 carries; no network needed, but they see few faces that are tilted or hidden.
    - "auto": YuNet if its file is in the cache or the Hub answers within seconds, or else Haar, with a warning.
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
    """Checks what goes into `find` and what comes out, and shows it pictures of at most `longest_side` pixels."""

    def __init__(self, find: Callable[[np.ndarray], np.ndarray], name: str, longest_side: float = LONGEST_SIDE):
        self.find, self.name, self.longest_side = find, name, longest_side
        self._lock = threading.Lock()  # OpenCV's detectors keep what they work with

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """`(n, 5)`, float32, boxes within the frame and not empty. Raises `ValueError` for what is no RGB frame."""
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
    """The frontal cascade; where it finds nobody, the one for profiles, on the frame and on its mirror image.

    Cascades know no probability: the score grows with the number of windows that agree. Nearly all false faces of a
    film of a stage, most of them profiles, scored under 0.5 and so began no track.
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
    """x, y, width, height and a score -> x0, y0, x1, y1, score."""
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


def check_frame(frame: np.ndarray) -> None:
    """Raises `ValueError` unless `frame` is `(H, W, 3)`, uint8, and has pixels."""
    is_array = isinstance(frame, np.ndarray)
    if not is_array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        found = f"{frame.dtype} of shape {frame.shape}" if is_array else f"a {type(frame).__name__}"
        raise ValueError(f"a frame must be an array (height, width, 3), uint8, RGB, not grey or RGBA, but is {found}")


def check_boxes(boxes, frame: np.ndarray, name: str = "the detector") -> np.ndarray:
    """`(n, 5)`, float32, clipped to the frame; what is then less than a pixel wide or high is left out."""
    boxes = np.array(boxes, dtype=np.float32)
    boxes = boxes.reshape(0, 5) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise ValueError(f"{name} must give faces as (n, 5): x0, y0, x1, y1, score; but gave shape {boxes.shape}")
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:4] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        raise ValueError(f"{name} gave {boxes[wrong][0]}, but must give finite x0, y0, x1, y1, score, and x0 <= x1")
    boxes[:, :4] = np.clip(boxes[:, :4], 0, np.tile(frame.shape[1::-1], 2))
    return boxes[(boxes[:, 2:4] - boxes[:, :2]).min(axis=1) >= 1]


def crop_face(frame: np.ndarray, box: np.ndarray, margin: float = 0.15, size: int | None = None) -> np.ndarray:
    """A square around the centre of the box: `(S, S, 3)`, uint8; the picture's edge is repeated where it ends.

    The data sets' clips are squares that one face fills from the hair to below the chin (DFEW's: 224 x 224 pixels).
    Detectors' boxes begin at forehead or brows, so `margin`, a share of the longer side, is added on each side; 0.15
    was chosen by eye. The data sets' faces are mostly aligned too, the eyes level; these are not. `size` resizes.
    """
    check_frame(frame)
    x0, y0, x1, y1 = (float(value) for value in np.ravel(box)[:4])
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    rows = np.arange(side) + round((y0 + y1 - side) / 2)
    columns = np.arange(side) + round((x0 + x1 - side) / 2)
    crop = frame.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")  # the nearest pixel, outside
    return crop if size is None else np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def choose_faces(faces: Sequence[Face], which: str | Callable[[list[Face]], list[Face]] = "all") -> list[Face]:
    """Of one frame's faces "all", the "largest" (not always the same person's), or what a callable makes of them."""
    if callable(which):
        return list(which(list(faces)))
    if which not in ("all", "largest"):
        raise ValueError(f"which faces must be 'all', 'largest' or a callable, but is {which!r}")
    return list(faces) if which == "all" else sorted(faces, key=lambda face: _area(face.box))[-1:]


def describe_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The look of a face: directions of edges on a grid, and colours, most of all in its middle; norm 1.

    It tells apart the few people of one scene. It is no face recognition: in other light, from another side or much
    nearer, a person looks like another, and people who look alike may be taken for one.
    """
    crop = crop_face(frame, box, margin=0.1, size=64)
    down, right = np.gradient(np.sqrt(crop.mean(axis=2) / 255))
    direction = (np.arctan2(down, right) % np.pi * 8 / np.pi).astype(int) % 8
    place = (np.arange(64)[:, None] // 8 * 8 + np.arange(64) // 8) * 8 + direction
    edges = np.bincount(place.ravel(), np.hypot(down, right).ravel(), minlength=512).reshape(64, 8)
    strength = np.linalg.norm(edges, axis=1, keepdims=True)
    edges = np.sqrt(edges / (strength + np.median(strength) + 1e-6))  # or a strong outline would be all that counts
    edges = (edges - edges.mean()) * _MIDDLE[4::8, 4::8].reshape(64, 1)
    red, green, blue = (crop // 32).astype(int).reshape(-1, 3).T
    colours = np.sqrt(np.bincount(red * 64 + green * 8 + blue, _MIDDLE.ravel(), minlength=512))
    parts = [part.ravel() / max(np.linalg.norm(part), 1e-6) for part in (edges, colours)]
    return (np.concatenate(parts) / np.sqrt(2)).astype(np.float32)


@dataclass(eq=False)
class _Person:
    number: int
    looks: np.ndarray  # (k, D)
    box: np.ndarray
    time: float
    shot: int


@dataclass(eq=False)
class FaceTracker:
    """Gives every face of a video the number of a person: 0, 1, ... in the order of their first appearance.

    Within a shot a person is followed by position and look, after a gap or a cut found again by the look alone.
    Memory is bounded: those seen longest ago are forgotten, and come back as somebody new; no number is used twice.
    """

    # The least likeness of two looks by which somebody is found again. Of some 180 faces of one film, as they were and
    # on plain backdrops, 95 in 100 had an earlier look that is more like them, 1 in 100 somebody else's.
    same_person: float = 0.67
    position_weight: float = 0.4  # what full overlap with the person's last box adds to it
    max_gap: float = 1.0  # seconds after which the last box no longer counts
    start_score: float = 0.5  # a box with a lower score only continues a track, within the shot and `max_gap`
    max_people: int = 100  # remembered
    max_looks: int = 12  # of each
    # (frame, box) -> vector of norm 1; if you have a face recognition network, put it here and set same_person by it
    describe: Callable[[np.ndarray, np.ndarray], np.ndarray] = describe_face

    def __post_init__(self):
        self.people: list[_Person] = []  # the one seen last comes last
        self.num_people, self.shot, self._last_frame = 0, 0, None  # people and shots counted since the start

    def update(self, frame: np.ndarray, boxes: np.ndarray, time: float) -> list[Face]:
        """The faces of the next frame: of the boxes `(n, 5)` those that belong to somebody; `time` in seconds."""
        check_frame(frame)
        boxes = check_boxes(boxes, frame)
        self._notice_cut(frame)
        looks = np.array([self.describe(frame, box) for box in boxes])
        owners = self._match(boxes, looks, time)
        for index in np.argsort(-boxes[:, 4], kind="stable"):
            if index not in owners and boxes[index, 4] >= self.start_score:
                owners[index] = _Person(self.num_people, looks[:0], boxes[index], time, self.shot)
                self.num_people += 1
        for index, person in owners.items():
            person.box, person.time, person.shot = boxes[index], time, self.shot
            person.looks = _with_look(person.looks, looks[index], self.max_looks)
        seen = list(owners.values())
        self.people = ([person for person in self.people if person not in seen] + seen)[-self.max_people :]
        return [Face(owners[i].number, boxes[i, :4], float(boxes[i, 4])) for i in sorted(owners)]

    def _match(self, boxes: np.ndarray, looks: np.ndarray, time: float) -> dict[int, _Person]:
        """Index of a box -> its person; the pairs most alike come first."""
        pairs = [
            (likeness + self.position_weight * self._nearness(person, boxes[index], time), index, person)
            for person in self.people
            for index, likeness in enumerate((looks @ person.looks.T).max(axis=1) if len(boxes) else ())
        ]
        owners: dict[int, _Person] = {}
        for likeness, index, person in sorted(pairs, key=lambda pair: -pair[0]):
            if likeness >= self.same_person and index not in owners and person not in owners.values():
                owners[index] = person
        return owners

    def _nearness(self, person: _Person, box: np.ndarray, time: float) -> float:
        """Overlap with the person's last box, 0 where that tells nothing, -1 if this cannot be the person."""
        is_sure = box[4] >= self.start_score
        if person.shot != self.shot or not 0 <= time - person.time <= self.max_gap:
            return 0.0 if is_sure else -1.0
        if (np.abs(box[:4] - person.box[:4]) > (2 if is_sure else 0.5) * (box[2:4] - box[:2]).max()).any():
            return -1.0
        inner = np.concatenate([np.maximum(box[:2], person.box[:2]), np.minimum(box[2:4], person.box[2:4])])
        return _area(inner) / (_area(box) + _area(person.box) - _area(inner))

    def _notice_cut(self, frame: np.ndarray) -> None:
        # Pattern and brightness: 0.05-0.35 and 0.4-0.55 at a film's cuts. A fast camera's false cut costs little.
        step = max(1, min(frame.shape[:2]) // 180)
        small = np.asarray(Image.fromarray(frame[::step, ::step]).resize((16, 16), Image.Resampling.BOX), dtype=float)
        if self._last_frame is not None:
            now, before = small - small.mean(), self._last_frame - self._last_frame.mean()
            likeness = (now * before).sum() / max(np.linalg.norm(now) * np.linalg.norm(before), 1e-6)
            change = np.abs(small - self._last_frame).sum() / max((small + self._last_frame).sum(), 1e-6)
            self.shot += bool(likeness < 0.5 and change > 0.2)
        self._last_frame = small


def _with_look(looks: np.ndarray, look: np.ndarray, most: int) -> np.ndarray:
    """Adds a look that is new; when there are too many, one goes that is most like another."""
    if len(looks) and (looks @ look).max() > 0.9:
        return looks
    looks = np.concatenate([looks, look[None]])
    alike = looks @ looks.T - 2 * np.eye(len(looks))
    return looks if len(looks) <= most else np.delete(looks, alike.max(axis=1).argmax(), axis=0)


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.clip(box[2:4] - box[:2], 0, None)))


__all__ = ["Face", "FaceTracker", "check_frame", "choose_faces", "crop_face", "describe_face", "load_face_detector"]
