# SPDX-License-Identifier: Apache-2.0
"""Sources of live frames: files, addresses, an RTSP camera, webcams."""

import functools
import http.server
import re
import socketserver
import struct
import sys
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from test_live import FRAMES, LABELS, T, make_pipe, stream_of, values

from emoclip.live import sources


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


def test_a_file_is_played_at_its_own_speed_or_as_fast_as_the_model(pipe, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", num_frames=8, fps=16)
    at_once = list(stream_of(pipe, drop=False, window=0.25).run(path))
    assert [now.time for now in at_once] == pytest.approx([index / 16 for index in range(8)])
    assert values(at_once[3].scores) == pytest.approx(
        values(list(stream_of(pipe, drop=False, window=0.25).run(str(path)))[3].scores)
    )
    start = time.monotonic()
    with stream_of(pipe, window=0.25) as stream:
        results = list(stream.run(path))
        assert 7 / 16 <= time.monotonic() - start
        assert results[-1].time == pytest.approx(7 / 16) and len(results) + stream.dropped <= 8
    whole = pipe(path, candidate_labels=LABELS)
    (now,) = list(stream_of(pipe, drop=False, window=0.5, every=8).run(path))[-1:]
    assert now.frames_used == 1 and len(whole) == 3


def test_a_whole_clip_as_one_window_scores_as_in_the_pipeline(pipe, write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", num_frames=T, fps=8)
    last = list(stream_of(pipe, drop=False, window=T / 8).run(path))[-1]
    assert last.frames_used == T
    assert values(last.scores) == pytest.approx(values(pipe(path, candidate_labels=LABELS)), abs=1e-5)


@pytest.fixture
def address(write_clip, tmp_path):
    write_clip(tmp_path / "clip.mp4", num_frames=8, fps=8)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_address(pipe, address, tmp_path):
    results = list(stream_of(pipe, drop=False, window=0.5).run(f"{address}/clip.mp4"))
    from_file = list(stream_of(pipe, drop=False, window=0.5).run(tmp_path / "clip.mp4"))
    assert [now.time for now in results] == pytest.approx([now.time for now in from_file])
    assert [values(now.scores) for now in results] == [pytest.approx(values(now.scores)) for now in from_file]
    with (
        stream_of(pipe) as stream,
        pytest.raises(OSError, match=r"^http://127\.0\.0\.1 cannot be opened") as error,
    ):
        list(stream.run(f"{address}/nowhere.mp4?token=secret"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://camera.local:554/live", "rtsp://camera.local"),
        ("rtsp://user:s3cret@host:554/live", "rtsp://host"),
        ("rtsp://user:s3@cret@host/live", "rtsp://host"),
        ("rtsp://user:s3/cret@host:554/live", "rtsp://host"),
        ("rtsp://user:s3/cret@host/live/@s3cret", "rtsp://…"),
        ("rtsp://user:s3/c@ret@host", "rtsp://…"),
        ("rtsp://user:s3?cret#s3@host:554/live", "rtsp://host"),
        ("rtsp://user:1/s3cret@host/live", "rtsp://user"),  # who reads it as an address goes to that host
        ("rtsp://s3cret@[2001:db8::1]:554/live", "rtsp://[2001:db8::1]"),
        ("http://host/clip.mp4?token=s3cret", "http://host"),
        ("http://host?token=s3@cret", "http://host"),
        ("https://host/s3cret/clip.mp4#s3cret", "https://host"),
        ("srt://host:9000?passphrase=s3cret&streamid=a@s3cret", "srt://host"),
        ("udp://@239.0.0.1:1234?key=s3cret", "udp://239.0.0.1"),
        ("rtsp:s3cret://host", "an address"),
        ("rtmp://", "rtmp://"),
        ("http://[s3cret/", "http://…"),
    ],
)
def test_messages_name_scheme_and_host_of_an_address_and_nothing_else(monkeypatch, address, shown):
    def refuse(*args, **options):
        raise av.error.InvalidDataError(1, "Invalid data found", address)  # as FFmpeg does

    class Empty:
        streams = type("", (), {"video": []})
        __enter__, __exit__ = (lambda self: self), (lambda self, *exception: None)

    monkeypatch.setattr(sources.av, "open", lambda *args, **options: Empty())
    with pytest.raises(ValueError, match=rf"^{re.escape(shown)} has no video stream$"):
        next(sources.frames_of(address, None, True, threading.Event()))
    monkeypatch.setattr(sources.av, "open", refuse)
    with pytest.raises(OSError, match=rf"^{re.escape(shown)} cannot be opened") as error:
        next(sources.frames_of(address, None, True, threading.Event()))
    assert "s3" not in str(error.value) and "ret" not in str(error.value)


class RtspCamera(socketserver.StreamRequestHandler):
    """Serves the least of RTSP (RFC 2326): one H.264 stream, in RTP packets within the connection."""

    session = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
        "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
    )

    def handle(self):
        transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        answers = {"DESCRIBE": ("Content-Type: application/sdp\r\n", self.session), "SETUP": (transport, "")}
        while request := self.rfile.readline().decode():
            method = request.split()[0]
            headers = dict(line.decode().strip().split(": ", 1) for line in iter(self.rfile.readline, b"\r\n"))
            header, body = answers.get(method, ("", ""))
            head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\nSession: 1\r\n{header}Content-Length: {len(body)}"
            self.wfile.write(f"{head}\r\n\r\n{body}".encode())
            if method == "PLAY":
                return self.play()

    def play(self, rate=20, number=0):
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = 96, 64, "yuv420p"
        encoder.time_base, encoder.options = Fraction(1, rate), {"tune": "zerolatency", "g": "1"}
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 6 * index, np.uint8), format="rgb24")
            frame.pts = index
            units = [u for p in encoder.encode(frame) for u in re.split(b"\x00\x00\x00?\x01", bytes(p)) if u]
            for unit in units:
                payload_type = 96 | (128 if unit is units[-1] else 0)
                packet = struct.pack("!BBHII", 0x80, payload_type, number, 90000 // rate * index, 7) + unit
                number += 1
                self.wfile.write(b"$\x00" + struct.pack("!H", len(packet)) + packet)
            time.sleep(1 / rate)


def test_an_rtsp_camera(pipe):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), RtspCamera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"rtsp://user:secret@127.0.0.1:{server.server_address[1]}/camera"
        taken = list(sources.frames_of(address, None, True, threading.Event()))
        moments = [moment for moment, _ in taken]  # FFmpeg gives the first two the same time
        assert moments == pytest.approx([max(0, index - 1) / 20 for index in range(30)], abs=0.051)
        assert moments == sorted(moments)
        assert [get_pixels().mean() for _, get_pixels in taken] == pytest.approx([6 * i for i in range(30)], abs=2)
        with stream_of(pipe, window=0.5) as stream:
            results = list(stream.run(address))
        assert results[-1].time > 1.2 and 1 <= results[-1].frames_used <= T
        server.shutdown()


def test_a_camera_that_sets_its_clock(monkeypatch):
    class Frame:
        def __init__(self, pts):
            self.pts, self.time_base = pts, 0.1

    class Container:
        streams = type("", (), {"video": [type("", (), {"average_rate": 10})()]})

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(sources.av, "open", lambda *args, **options: Container())
    stamps = [500, 501, 502, None, 504, 3, 4, 90000, 90001]
    monkeypatch.setattr(sources, "decoded_frames", lambda *args: map(Frame, stamps))
    times = [moment for moment, _ in sources.frames_of("rtsp://camera", None, True, threading.Event())]
    assert times == pytest.approx([index / 10 for index in range(9)])


def test_a_webcam(pipe, monkeypatch):
    class Camera:
        def __init__(self, number):
            self.frames, self.released = list(FRAMES[:3]) if number == 0 else None, False
            cameras.append(self)

        def isOpened(self):
            return self.frames is not None

        def read(self):
            return (True, self.frames.pop(0)[..., ::-1]) if self.frames else (False, None)  # BGR

        def release(self):
            self.released = True

    cameras = []
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with stream_of(pipe) as stream:
        with pytest.raises(OSError, match="webcam 0 gives no more frames"):
            list(stream.run(0))
        assert cameras[0].released
    first = next(sources.frames_of(0, None, True, threading.Event()))
    assert np.array_equal(first[1](), FRAMES[0])
    with stream_of(pipe) as stream, pytest.raises(OSError, match="webcam 7 cannot be opened"):
        list(stream.run(7))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with stream_of(pipe) as stream, pytest.raises(ImportError, match="OpenCV"):
        list(stream.run(0))
