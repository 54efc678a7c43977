# SPDX-License-Identifier: Apache-2.0
"""Face detection, face tracking through a video, and face crops like those in the data sets.

A detector is any callable `frame (H, W, 3), uint8, RGB -> float array (n, 5)`: x0, y0, x1, y1 in pixels and a score.
For a frame without faces it returns `(0, 5)`; the list of `Face` is then empty.
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

# 233 kB; needs OpenCV 4.8 or newer. The revision is pinned and the hash checked, since scores depend on the detector.
YUNET = {
    "repo_id": "opencv/face_detection_yunet",
    "filename": "face_detection_yunet_2023mar.onnx",
    "revision": "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
}
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LONGEST_SIDE = 640  # pixels; larger frames are downscaled for detection, which bounds its cost for every video
SMALLEST_FACE = 1 / 15  # of the short side (24 of 360 pixels); Haar only: smaller ones add many false positives
# Center weights for `describe_face`: the surroundings of a face say more about the place than about the person.
_MIDDLE = np.exp(-((np.mgrid[:64, :64] - 31.5) ** 2).sum(axis=0) / (2 * 16**2))


def opencv():
    """Imports `cv2` lazily (it takes as long as all other imports here) and returns it; `None` if not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


@dataclass(frozen=True, eq=False)  # eq: comparing arrays gives no single bool
class Face:
    """A face in one frame: the number of its person, `(x0, y0, x1, y1)` in pixels, and the detector's score."""

    person: int
    box: np.ndarray
    score: float


def load_face_detector(name: str | os.PathLike | Callable[[np.ndarray], np.ndarray] = "auto") -> "FaceDetector":
    """Loads a face detector by name. The `.name` of the result is the detector that was loaded.

    - "yunet": OpenCV's small network, from the Hub or its cache (`OSError` if unavailable), or a path to its .onnx.
    - "haar": the cascades bundled with OpenCV 4; they need no download but miss most tilted or partly hidden faces.
    - "auto": YuNet if its file is in the cache or the Hub answers within seconds, otherwise Haar with a warning.
    - a callable: a custom detector. Its boxes are checked and clipped; boxes that score under 0.5 start no track.
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
    """A wrapper that checks the input and output of `find` and downscales frames to at most `longest_side` pixels."""

    def __init__(self, find: Callable[[np.ndarray], np.ndarray], name: str, longest_side: float = LONGEST_SIDE):
        self.find, self.name, self.longest_side = find, name, longest_side
        self._lock = threading.Lock()  # OpenCV's detectors are stateful

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Returns non-empty boxes within `frame`, `(n, 5)`, float32. Raises `ValueError` unless it is an RGB frame."""
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
    """The frontal Haar cascade, with the profile cascade (frame and mirror image) as a fallback if it finds no face.

    Cascades give no probability, so the score grows with the number of windows that agree. In a film of a stage
    nearly all false positives, most of them profiles, scored under 0.5 and therefore started no track.
    """

    def __init__(self):
        cv2 = opencv()
        # There alt2 gave almost no false positives without equalization, but many with it, as did `default`.
        self.frontal = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
        self.profile = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_profileface.xml")  # one side only

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        cv2 = opencv()
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        smallest = [max(20, round(min(grey.shape) * SMALLEST_FACE))] * 2  # the cascades cannot detect faces below 20
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
            # OpenCV's default of 0.9 suits photographs; blurred and partly hidden faces in films score lower.
            self.network = cv2.FaceDetectorYN.create(path, "", (320, 320), score_threshold=0.7)
        except cv2.error as error:
            raise ValueError(f"{path} is no network of YuNet's kind, or damaged ({error})") from None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.network.setInputSize((frame.shape[1], frame.shape[0]))
        found = self.network.detect(np.ascontiguousarray(frame[..., ::-1]))[1]  # BGR
        found = np.zeros((0, 15)) if found is None else found  # box, five landmarks, score
        return _corners(found[:, :4], found[:, 14])


def _corners(boxes, scores: np.ndarray) -> np.ndarray:
    """Converts boxes x, y, width, height and their scores to x0, y0, x1, y1, score."""
    boxes = np.reshape(boxes, (-1, 4)).astype(np.float64)
    return np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:], scores])


def _quickly_fetched_yunet() -> str | None:
    try:
        path = try_to_load_from_cache(**YUNET)
        if not isinstance(path, str):
            # One short request first: without a network hf_hub_download alone retries for half a minute.
            get_hf_file_metadata(hf_hub_url(**YUNET), timeout=3, token=False)
            path = hf_hub_download(**YUNET, token=False)
        return _checked_yunet(path)
    except Exception as error:  # Haar replaces it, whatever the reason
        warnings.warn(
            f"faces are looked for with haar, which finds fewer faces than yunet, whose file cannot be had: "
            f"{type(error).__name__}: {error}. Scores depend on the detector; detector='haar' or 'yunet' fixes it.",
            stacklevel=3,
        )
    return None


def _checked_yunet(path: str) -> str:
    """Returns `path` if it holds the pinned YuNet file. Raises `OSError` for any other content."""
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
    """Clips boxes to the frame, `(n, 5)`, float32, and drops those that are then less than a pixel wide or high."""
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
    """Crops a square around the center of the box, `(S, S, 3)`, uint8; beyond the frame its edge is repeated.

    Clips in the data sets are squares filled by one face from the hair to below the chin (DFEW: 224 x 224 pixels).
    Detector boxes start at the forehead or brows, so `margin`, a fraction of the longer side, is added on each side;
    0.15 was chosen by eye. Unlike most faces in the data sets, crops are not aligned (eyes level). `size` resizes.
    """
    check_frame(frame)
    x0, y0, x1, y1 = (float(value) for value in np.ravel(box)[:4])
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    rows = np.arange(side) + round((y0 + y1 - side) / 2)
    columns = np.arange(side) + round((x0 + x1 - side) / 2)
    crop = frame.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")  # repeats the edge
    return crop if size is None else np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def choose_faces(faces: Sequence[Face], which: str | Callable[[list[Face]], list[Face]] = "all") -> list[Face]:
    """Selects "all" faces of a frame, the "largest" (the person may change), or those that a callable returns."""
    if callable(which):
        return list(which(list(faces)))
    if which not in ("all", "largest"):
        raise ValueError(f"which faces must be 'all', 'largest' or a callable, but is {which!r}")
    return list(faces) if which == "all" else sorted(faces, key=lambda face: _area(face.box))[-1:]


def describe_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Computes a center-weighted descriptor of a face with norm 1: gradient orientations on a grid, and colors.

    It distinguishes the few people of one scene but is not face recognition: one person may look like two under
    different lighting, from another angle or much closer, and similar people may be confused.
    """
    crop = crop_face(frame, box, margin=0.1, size=64)
    down, right = np.gradient(np.sqrt(crop.mean(axis=2) / 255))
    direction = (np.arctan2(down, right) % np.pi * 8 / np.pi).astype(int) % 8
    place = (np.arange(64)[:, None] // 8 * 8 + np.arange(64) // 8) * 8 + direction
    edges = np.bincount(place.ravel(), np.hypot(down, right).ravel(), minlength=512).reshape(64, 8)
    strength = np.linalg.norm(edges, axis=1, keepdims=True)
    edges = np.sqrt(edges / (strength + np.median(strength) + 1e-6))  # otherwise strong outlines would dominate
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
    """A tracker that assigns person numbers 0, 1, ... to the faces of a video, in order of first appearance.

    Within a shot, people are matched by position and appearance; after a gap or a cut, by appearance alone. Memory is
    bounded: the people seen least recently are forgotten and get a new number if they return. Numbers are not reused.
    """

    # Minimum similarity of two descriptors to match a person. Of some 180 faces in one film, as filmed and on plain
    # backdrops, 95 % exceeded it with an earlier descriptor of their own person, 1 % with that of another person.
    same_person: float = 0.67
    position_weight: float = 0.4  # added to the similarity for full overlap with the person's last box
    max_gap: float = 1.0  # seconds after which the last box is ignored
    start_score: float = 0.5  # lower-scoring boxes only continue a track, within the shot and `max_gap`
    max_people: int = 100  # kept in memory
    max_looks: int = 12  # descriptors per person
    # (frame, box) -> vector of norm 1. A face recognition network can be used here; same_person must then be adapted.
    describe: Callable[[np.ndarray, np.ndarray], np.ndarray] = describe_face

    def __post_init__(self):
        self.people: list[_Person] = []  # most recently seen last
        self.num_people, self.shot, self._last_frame = 0, 0, None  # counts since the start

    def update(self, frame: np.ndarray, boxes: np.ndarray, time: float) -> list[Face]:
        """Returns the faces of the next frame: the boxes `(n, 5)` assigned to a person. `time` is in seconds."""
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
        """Matches box indices to persons, greedily by decreasing similarity."""
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
        """Returns the overlap with the person's last box: 0 if it is uninformative, -1 if the match is impossible."""
        is_sure = box[4] >= self.start_score
        if person.shot != self.shot or not 0 <= time - person.time <= self.max_gap:
            return 0.0 if is_sure else -1.0
        if (np.abs(box[:4] - person.box[:4]) > (2 if is_sure else 0.5) * (box[2:4] - box[:2]).max()).any():
            return -1.0
        inner = np.concatenate([np.maximum(box[:2], person.box[:2]), np.minimum(box[2:4], person.box[2:4])])
        return _area(inner) / (_area(box) + _area(person.box) - _area(inner))

    def _notice_cut(self, frame: np.ndarray) -> None:
        # Pattern and brightness: 0.05-0.35 and 0.4-0.55 at the cuts of a film. False cuts (fast camera) cost little.
        step = max(1, min(frame.shape[:2]) // 180)
        small = np.asarray(Image.fromarray(frame[::step, ::step]).resize((16, 16), Image.Resampling.BOX), dtype=float)
        if self._last_frame is not None:
            now, before = small - small.mean(), self._last_frame - self._last_frame.mean()
            likeness = (now * before).sum() / max(np.linalg.norm(now) * np.linalg.norm(before), 1e-6)
            change = np.abs(small - self._last_frame).sum() / max((small + self._last_frame).sum(), 1e-6)
            self.shot += bool(likeness < 0.5 and change > 0.2)
        self._last_frame = small


def _with_look(looks: np.ndarray, look: np.ndarray, most: int) -> np.ndarray:
    """Adds a descriptor if it is new. Above `most`, removes the one most similar to another."""
    if len(looks) and (looks @ look).max() > 0.9:
        return looks
    looks = np.concatenate([looks, look[None]])
    alike = looks @ looks.T - 2 * np.eye(len(looks))
    return looks if len(looks) <= most else np.delete(looks, alike.max(axis=1).argmax(), axis=0)


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.clip(box[2:4] - box[:2], 0, None)))


__all__ = ["Face", "FaceTracker", "check_frame", "choose_faces", "crop_face", "describe_face", "load_face_detector"]
