# SPDX-License-Identifier: Apache-2.0
import hashlib
import socket
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image

from emoclip.faces import detection
from emoclip.faces.boxes import Face, choose_faces, crop_face
from emoclip.faces.detection import load_face_detector
from emoclip.faces.tracking import FaceTracker, describe_face
from modeling_emoclip.video_reading import read_video

needs_opencv = pytest.mark.skipif(detection.opencv() is None, reason="needs OpenCV 4: pip install emoclip[faces]")
FILM = Path(__file__).parents[3] / "shared" / "media" / "stage_speech.mp4"
FACE_OF_HOPPER = [145, 99, 384, 338]  # in the only photograph of a person that a package of ours carries


@pytest.fixture(scope="module")
def photo():
    with get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Image.open(file).convert("RGB"))  # (600, 512, 3)


@pytest.fixture(scope="module")
def haar():
    return load_face_detector("haar")


# --- built-in detectors


@needs_opencv
def test_haar_finds_the_face_of_a_photograph(haar, photo):
    found = haar(photo)
    assert haar.name == "haar" and found.shape == (1, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, :4], FACE_OF_HOPPER, atol=12)
    assert 0.5 < found[0, 4] <= 1


@needs_opencv
def test_large_frames_are_made_smaller_and_the_boxes_fit_the_frame(haar, photo, monkeypatch):
    large = np.asarray(Image.fromarray(photo).resize((2560, 3000)))
    seen = []
    find = haar.find
    monkeypatch.setattr(haar, "find", lambda frame: seen.append(frame.shape) or find(frame))
    np.testing.assert_allclose(haar(large)[0, :4], np.multiply(FACE_OF_HOPPER, 5), atol=60)
    assert seen == [(640, 546, 3)]


@needs_opencv
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (5000, 2), (19, 19), (90, 160)])
def test_no_face_is_an_answer(haar, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for frame in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        found = haar(frame)
        assert found.shape == (0, 5) and found.dtype == np.float32


@needs_opencv
def test_auto_does_not_wait_for_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(detection, "try_to_load_from_cache", lambda **file: None)
    start = time.perf_counter()
    with pytest.warns(UserWarning, match=r"haar.* finds fewer faces than yunet, .* cannot be had: OfflineMode"):
        assert load_face_detector().name == "haar"  # conftest: HF_HUB_OFFLINE
    assert time.perf_counter() - start < 3


class Network:
    """In place of OpenCV's class, since no package carries YuNet's file; a face where the frame is pure red."""

    def create(self, path, config, size, score_threshold):
        self.path = path
        return self

    def setInputSize(self, size):
        self.size = size

    def detect(self, image):
        assert image.shape[1::-1] == self.size
        rows, columns = np.nonzero((image == (0, 0, 255)).all(axis=2))  # BGR
        if not len(rows):
            return 0, None
        row = np.zeros((1, 15), dtype=np.float32)
        row[0, :4] = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        row[0, 14] = 0.8
        return 1, row


@pytest.fixture
def cached_yunet(monkeypatch, tmp_path):
    """A file that stands for YuNet's, where the Hub's cache has it; and a network that must not be asked."""
    path = tmp_path / "models--opencv--face_detection_yunet" / "snapshots" / detection.YUNET["revision"]
    path.mkdir(parents=True)
    path = path / detection.YUNET["filename"]
    path.write_bytes(b"weights")
    monkeypatch.setattr(detection, "YUNET_SHA256", hashlib.sha256(b"weights").hexdigest())
    for name in ("try_to_load_from_cache", "hf_hub_download"):
        monkeypatch.setattr(detection, name, partial(getattr(detection, name), cache_dir=tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address: pytest.fail(f"{address} is asked"))
    return path


@needs_opencv
def test_yunet(monkeypatch, cached_yunet, tmp_path):
    network = Network()
    monkeypatch.setattr(detection.opencv(), "FaceDetectorYN", network)
    for name in ("auto", "yunet"):
        detector = load_face_detector(name)
        assert detector.name == "yunet" and network.path == str(cached_yunet)
    own = tmp_path / "mine.onnx"
    own.touch()
    assert load_face_detector(own).name == "yunet" and network.path == str(own)
    frame = np.zeros((1280, 640, 3), dtype=np.uint8)
    assert detector(frame).shape == (0, 5)
    frame[200:300, 100:180] = (255, 0, 0)
    np.testing.assert_allclose(detector(frame), [[100, 200, 180, 300, 0.8]])
    frame[:, 630:] = (255, 0, 0)  # as far as the frame's edge
    np.testing.assert_allclose(detector(frame), [[100, 0, 640, 1280, 0.8]])


@needs_opencv
def test_yunets_file_is_that_of_one_revision_and_nothing_else_is_opened(monkeypatch, cached_yunet):
    assert len(detection.YUNET["revision"]) == 40
    monkeypatch.setattr(detection.opencv(), "FaceDetectorYN", None)
    cached_yunet.write_bytes(b"another network")
    with pytest.raises(
        OSError, match=rf"{cached_yunet.name} is not .*: its sha256 is .*, but must be {detection.YUNET_SHA256}"
    ):
        load_face_detector("yunet")
    with pytest.warns(UserWarning, match="haar.* cannot be had: .* its sha256 is"):
        assert load_face_detector("auto").name == "haar"


@needs_opencv
def test_yunet_is_asked_for_without_the_users_token(monkeypatch):
    asked = []
    monkeypatch.setattr(detection, "try_to_load_from_cache", lambda **file: None)
    monkeypatch.setattr(detection, "get_hf_file_metadata", lambda url, **how: asked.append((url, how)))
    monkeypatch.setattr(detection, "hf_hub_download", lambda **how: asked.append((None, how)) or "/nowhere")
    with pytest.warns(UserWarning, match="cannot be had"):
        load_face_detector("auto")
    assert [how["token"] for _, how in asked] == [False, False]
    assert detection.YUNET["revision"] in asked[0][0] and detection.YUNET.items() <= asked[1][1].items()


@needs_opencv
def test_a_network_of_ones_own_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        load_face_detector(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"bad\.onnx is no network of YuNet's"):
        load_face_detector(tmp_path / "bad.onnx")


def test_without_opencv_the_error_names_the_extra_and_the_rest_works(monkeypatch, photo):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in ("auto", "haar", "yunet", "a.onnx"):
        with pytest.raises(ImportError, match=r"pip install emoclip\[faces\]"):
            load_face_detector(name)
    found = load_face_detector(lambda frame: [[*FACE_OF_HOPPER, 1.0]])(photo)
    assert [face.person for face in FaceTracker().update(photo, found, 0.0)] == [0]


@needs_opencv
@pytest.mark.parametrize("name", ["dlib", "yunet.pt"])
def test_unknown_detectors_are_refused(name):
    with pytest.raises(ValueError, match="is no face detector"):
        load_face_detector(name)


# --- frames and boxes


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((9, 9), dtype=np.uint8),
        np.zeros((9, 9, 1), dtype=np.uint8),
        np.zeros((9, 9, 4), dtype=np.uint8),
        np.zeros((9, 9, 3), dtype=np.float32),
        np.zeros((0, 9, 3), dtype=np.uint8),
        Image.new("RGB", (9, 9)),
    ],
    ids=["grey", "one-channel", "rgba", "float", "empty", "pil"],
)
def test_frames_that_are_not_rgb_are_refused(frame):
    for use in (load_face_detector(lambda frame: []), lambda frame: FaceTracker().update(frame, [], 0.0)):
        with pytest.raises(ValueError, match=r"a frame must be an array \(height, width, 3\), uint8, RGB"):
            use(frame)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5, 5]], r"must give faces as \(n, 5\).*gave shape \(1, 4\)"),
        ([0, 0, 5, 5, 1], r"gave shape \(5,\)"),
        (None, r"gave shape \(\)"),
        ([[0, 0, np.nan, 5, 1]], "must give finite"),
        ([[0, 0, 5, 5, np.inf]], "must give finite"),
        ([[5, 5, 3, 3, 1]], "x0 <= x1"),
    ],
)
def test_wrong_boxes_are_refused_by_the_detectors_name(boxes, message):
    def mine(frame):
        return boxes

    with pytest.raises(ValueError, match=f"mine .*{message}"):
        load_face_detector(mine)(np.zeros((9, 9, 3), dtype=np.uint8))


def test_boxes_are_clipped_to_the_frame():
    boxes = [[-5, 2, 4, 99, 0.5], [20, 20, 30, 30, 1], [3, 3, 3, 8, 1]]  # over the edge, outside, without width
    found = load_face_detector(lambda frame: boxes)(np.zeros((10, 20, 3), dtype=np.uint8))
    np.testing.assert_array_equal(found, [[0, 2, 4, 10, 0.5]])
    assert boxes[0][0] == -5


# --- crops and choice


def test_a_crop_is_the_square_around_the_box():
    frame = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    np.testing.assert_array_equal(crop_face(frame, np.array([20, 10, 30, 20]), margin=0), frame[10:20, 20:30])
    np.testing.assert_array_equal(crop_face(frame, np.array([20, 10, 30, 20]), margin=0.5), frame[5:25, 15:35])
    np.testing.assert_array_equal(crop_face(frame, np.array([20, 14, 30, 16]), margin=0), frame[10:20, 20:30])
    assert crop_face(frame, np.array([20, 10, 30, 20]), size=224).shape == (224, 224, 3)


@pytest.mark.parametrize("box", [[-5, -5, 5, 5], [55, 35, 65, 45], [0, 0, 60, 40], [100, 100, 110, 110], [7, 7, 7, 7]])
def test_a_crop_repeats_the_edge_outside_of_the_picture(box):
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    side = max(1, box[2] - box[0])
    padded = np.pad(frame, ((200, 200), (200, 200), (0, 0)), mode="edge")
    top, left = 200 + round((box[1] + box[3] - side) / 2), 200 + round((box[0] + box[2] - side) / 2)
    np.testing.assert_array_equal(
        crop_face(frame, np.array(box), margin=0), padded[top : top + side, left : left + side]
    )


def test_choose_faces():
    small, large = Face(0, np.array([0.0, 0, 9, 9]), 0.9), Face(1, np.array([0.0, 0, 5, 50]), 0.6)
    assert choose_faces([small, large]) == [small, large]
    assert choose_faces([small, large], "largest") == [large]
    assert choose_faces([small, large], lambda found: [face for face in found if face.score > 0.8]) == [small]
    for which in ("all", "largest", lambda found: found[:1]):
        assert choose_faces([], which) == []
    with pytest.raises(ValueError, match="'all', 'largest' or a callable, but is 'biggest'"):
        choose_faces([small], "biggest")


# --- tracks: people are coloured patterns that move before a backdrop


def pattern(seed, *shape):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC))


def film(places, backdrop=100, score=0.9):
    """One frame and its boxes: `places` maps a person to the left upper corner of the face."""
    frame = pattern(backdrop, 320, 180) // 2
    for person, (x, y) in places.items():
        frame[y : y + 40, x : x + 40] = pattern(person, 40, 40)
    return frame, np.array([[x, y, x + 40, y + 40, score] for x, y in places.values()]).reshape(-1, 5)


def track(tracker, shots):
    """`shots`: for each frame what `film` takes; -> for each frame {person in the film: number of the tracker}."""
    numbers = []
    for index, shot in enumerate(shots):
        frame, boxes = film(*shot)
        found = tracker.update(frame, boxes, index / 10)
        numbers.append({who: face.person for who, face in zip(shot[0], found, strict=True)})
    return numbers


def test_people_who_move_and_cross_keep_their_numbers():
    shots = [({1: (10 + 12 * t, 60), 2: (250 - 12 * t, 60 + 2 * t)},) for t in range(20)]
    assert track(FaceTracker(), shots) == [{1: 0, 2: 1}] * 20


def test_people_come_back_after_gaps_and_cuts_and_newcomers_are_new():
    first = [({1: (60, 60), 2: (200, 60)}, 100)] * 3
    nobody = [({}, 100)] * 30  # three seconds
    elsewhere = [({3: (60, 60)}, 101)] * 3  # a cut to another face at the first one's place
    back = [({2: (60, 60), 1: (230, 90)}, 102)] * 3  # and back, with the places swapped
    numbers = track(FaceTracker(), first + nobody + first + elsewhere + back)
    expected = [{1: 0, 2: 1}] * 3 + [{}] * 30 + [{1: 0, 2: 1}] * 3 + [{3: 2}] * 3 + [{2: 1, 1: 0}] * 3
    assert numbers == expected


def test_a_face_may_be_hidden_or_missed_within_a_shot():
    shots = [({1: (60, 60)},), ({},), ({1: (70, 64)},), ({},), ({},), ({1: (74, 66)},)]
    assert [list(found.values()) for found in track(FaceTracker(), shots)] == [[0], [], [0], [], [], [0]]
    tracker = FaceTracker()
    frame, boxes = film({1: (60, 60)})
    tracker.update(frame, boxes, 0.0)
    frame = frame.copy()
    frame[75:, 60:80] = 128  # by a hand
    assert [face.person for face in tracker.update(frame, boxes, 0.1)] == [0]


def test_unsure_boxes_continue_a_track_but_start_none():
    tracker = FaceTracker()
    assert tracker.update(*film({1: (60, 60)}, score=0.3), 0.0) == []
    assert [face.person for face in tracker.update(*film({1: (60, 60)}, score=0.9), 0.1)] == [0]
    assert [face.person for face in tracker.update(*film({1: (64, 60)}, score=0.3), 0.2)] == [0]
    assert tracker.update(*film({1: (250, 100)}, score=0.3), 0.3) == []  # not from one side to the other
    assert tracker.update(*film({1: (64, 60)}, score=0.3), 9.0) == []  # nor after a gap, by the look alone


def test_two_boxes_are_two_people_and_one_person_has_one_box():
    tracker = FaceTracker()
    twins = pattern(100, 320, 180) // 2
    twins[60:100, 60:100] = twins[60:100, 200:240] = pattern(1, 40, 40)
    boxes = np.array([[60, 60, 100, 100, 0.8], [200, 60, 240, 100, 0.9]])
    for time_ in (0.0, 0.1):  # in the order of the boxes; the surer came first
        assert [face.person for face in tracker.update(twins, boxes, time_)] == [1, 0]


def test_numbers_are_never_used_twice_and_memory_is_bounded():
    tracker = FaceTracker(max_people=5, max_looks=3)
    numbers = [track(tracker, [({person: (60, 60)}, 200 + person)] * 2)[1][person] for person in range(12)]
    assert numbers == list(range(12)) and tracker.num_people == 12
    assert len(tracker.people) == 5
    assert track(tracker, [({0: (60, 60)}, 200)]) == [{0: 12}]  # forgotten, and so new
    for step in range(60):  # one person, who looks different all the time
        frame, boxes = film({0: (60, 60)}, 200)
        tracker.update(np.roll(frame, step, axis=2) // (1 + step % 5), boxes, step / 10)
    assert max(len(person.looks) for person in tracker.people) <= 3


def test_time_that_jumps_back_is_no_error():
    tracker = FaceTracker()
    frame, boxes = film({1: (60, 60)})
    assert [tracker.update(frame, boxes, time_)[0].person for time_ in (5.0, 1.0, 1.0)] == [0, 0, 0]
    assert tracker.update(np.zeros((1, 1, 3), dtype=np.uint8), [], 2.0) == []


def test_a_face_recognition_network_can_take_the_place_of_the_description():
    tracker = FaceTracker(describe=lambda frame, box: np.eye(2)[int(box[0] > 150)], same_person=0.99)
    assert track(tracker, [({1: (10, 10)}, 100), ({2: (200, 10)}, 101), ({3: (12, 90)}, 102)])[2] == {3: 0}


def test_looks_do_not_depend_on_size_and_brightness():
    frame, boxes = film({1: (60, 60), 2: (200, 60)})
    look, other = (describe_face(frame, box) for box in boxes)
    twice = np.asarray(Image.fromarray(frame).resize((640, 360), Image.Resampling.BICUBIC))
    assert look.dtype == np.float32 and np.linalg.norm(look) == pytest.approx(1)
    assert look @ describe_face(twice, boxes[0] * 2) > 0.9
    assert look @ describe_face((frame * 0.8).astype(np.uint8), boxes[0]) > 0.8
    assert look @ other < FaceTracker.same_person
    assert np.isfinite(describe_face(np.zeros((50, 50, 3), dtype=np.uint8), np.array([0, 0, 9, 9]))).all()


@needs_opencv
@pytest.mark.skipif(not FILM.exists(), reason="the film is not part of the repository")
def test_the_people_of_a_real_film(haar):
    indices = np.array([0, 6, 12, *range(84, 211, 16), 213, 222, 234])  # a stage from afar; from near; the audience
    frames, _ = read_video(FILM, lambda metadata: indices)
    tracker = FaceTracker()
    found = [tracker.update(f, haar(f), i / 29.97) for f, i in zip(frames, indices, strict=True)]
    people = [sorted(face.person for face in faces_) for faces_ in found]
    assert people[:3] == [[0, 1]] * 3
    assert set(map(tuple, people[3:-3])) == {(2,)}  # near, he is not known as the one from far away
    assert {person for frame in people[-3:] for person in frame} == {3, 4}
