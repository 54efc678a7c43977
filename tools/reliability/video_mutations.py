# SPDX-License-Identifier: Apache-2.0
"""Damaged video files: real ones, made here, then cut, flipped, swapped, spliced, and given absurd headers."""

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from tools.reliability.crafted_headers import PROMISES, crafted

# Container -> codecs of the files that are damaged.
CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4"),
    "avi": ("mpeg4", "mjpeg", "libx264"),
    "mkv": ("libx264", "mpeg4", "libvpx-vp9"),
    "webm": ("libvpx", "libvpx-vp9"),
    "gif": ("gif",),
    "ts": ("libx264", "mpeg2video"),
    "h264": ("libx264",),
}
SOUND = {
    "mp4": "aac",
    "avi": "libmp3lame",
    "mkv": "libopus",
    "webm": "libopus",
    "ts": "aac",
}  # in the first file of a container
PIXEL_FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p"}
OPTIONS = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}}
HEADER = 1500  # bytes at the beginning; an index at the end of an mp4 counts too
ABSURD = (0, 1, 0x7F, 0xFFFF, 0x7FFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000, 50_000)
# Where sizes, counts and rates stand: what comes before the field, how far it is behind that, and its bytes.
FIELDS = {
    "mp4": [
        *((tag, offset, 4) for tag in (b"mvhd", b"mdhd", b"tkhd") for offset in (12, 16, 20, 24, 76, 80)),
        *(
            (tag, offset, 4)
            for tag in (b"stts", b"stsc", b"stsz", b"stco", b"ctts", b"elst")
            for offset in range(4, 24, 4)
        ),
        *((tag, offset, 2) for tag in (b"avc1", b"hev1", b"mp4v") for offset in (24, 26)),
    ],
    "avi": [
        *((b"avih", offset, 4) for offset in (4, 8, 20, 24, 28, 32, 36, 40)),
        *((b"strh", offset, 4) for offset in (24, 28, 36, 40)),
        *((b"strf", offset, 4) for offset in (8, 12, 16, 24)),
    ],
    "mkv": [(tag, len(tag) - 1, 4) for tag in (b"\xb0", b"\xba", b"\x23\xe3\x83", b"\x2a\xd7\xb1", b"\x44\x89")],
    "gif": [(b"GIF89a", offset, 2) for offset in (0, 2)] + [(b"\x2c", offset, 2) for offset in (0, 2, 4, 6)],
}
FIELDS["webm"] = FIELDS["mkv"]


class Mutation(NamedTuple):
    name: str  # of the file
    container: str  # of the file that was damaged
    kind: str
    data: bytes


def make_videos(folder: Path, num_frames: int = 25) -> dict[str, list[bytes]]:
    """Container -> whole files, one for each codec."""
    videos: dict[str, list[bytes]] = {}
    for container, codecs in CODECS.items():
        for codec in codecs:
            path, sound = folder / f"{codec}.{container}", SOUND.get(container) if codec == codecs[0] else None
            videos.setdefault(container, []).append(write_noise(path, codec, num_frames, sound=sound).read_bytes())
    return videos


def write_noise(
    path: Path,
    codec: str = "libx264",
    num_frames: int = 25,
    width: int = 96,
    height: int = 64,
    sound: str | None = None,
) -> Path:
    """A picture that moves and changes, so that every kind of block is in the file; and sound, if a codec is named."""
    breadth = max(4 * width, width + 3 * num_frames)
    noise = np.random.default_rng(0).integers(0, 255, (height, breadth, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=OPTIONS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = width, height, PIXEL_FORMATS.get(codec, "yuv420p")
        if codec != "gif":
            stream.codec_context.gop_size, stream.bit_rate = 8, 300_000
        hiss = container.add_stream(sound, rate=48_000) if sound else None
        for index in range(num_frames):
            if hiss:
                samples = np.resize(noise, (2, 48_000 // 25)).astype("f4") / 1000
                samples = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
                samples.sample_rate, samples.pts = 48_000, index * 48_000 // 25
                container.mux(hiss.encode(samples))
            pixels = np.ascontiguousarray(noise[:, 3 * index : 3 * index + width])
            pixels[: height // 2] = 9 * index % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if hiss:
            container.mux(hiss.encode())
    return path


def mutations(videos: dict[str, list[bytes]], count: int, seed: int) -> Iterator[Mutation]:
    """`count` damaged files; all containers and all kinds of damage take turns. The same seed gives the same files."""
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        container = list(videos)[number % len(videos)]
        kind = list(KINDS)[number // len(videos) % len(KINDS)]
        data = rng.choice(videos[container])
        suffix = rng.choice(sorted(set(videos) - {container})) if kind == "wrong_extension" else container
        data = KINDS[kind](data, container, videos, rng)
        yield Mutation(f"{number:06}_{kind}.{suffix}", container, kind, data)


def _truncated(data, container, videos, rng):
    return data[: rng.randrange(1, len(data))]


def _header_bits_flipped(data, container, videos, rng):
    return _flipped(data, rng.choices(_header(data), k=rng.randint(1, 8)), rng)


def _data_bits_flipped(data, container, videos, rng):
    return _flipped(data, rng.choices(range(len(data)), k=rng.randint(1, 64)), rng)


def _deleted(data, container, videos, rng):
    start = rng.choice(_header(data)) if rng.random() < 0.5 else rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 100, 4000)) :]


def _zeroed(data, container, videos, rng):
    start, length = rng.randrange(len(data)), rng.choice((4, 16, 100, 4000))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _boxes_swapped(data, container, videos, rng):
    """Two neighbouring parts change places: boxes, chunks or elements, as far as their names are seen in the bytes."""
    marks = {
        "mp4": rb"(?s)....(?=ftyp|moov|mdat|free|trak|mdia|minf|stbl|st[a-z]{2}|mvhd|mdhd|tkhd|udta)",
        "avi": rb"LIST|avih|strh|strf|00dc|idx1|movi|JUNK",
        "gif": rb"\x21\xf9|\x2c",
    }
    starts = [
        found.start()
        for found in re.finditer(marks.get(container, rb"\x1f\x43\xb6\x75|\xa3|\xae|\x16\x54\xae\x6b"), data)
    ]
    if len(starts) < 3:
        return data
    first = rng.randrange(len(starts) - 2)
    a, b, c = starts[first : first + 3]
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _spliced(data, container, videos, rng):
    """The beginning of one file and the end of another, of any container."""
    other = rng.choice(videos[rng.choice(list(videos))])
    return data[: rng.randrange(1, len(data))] + other[rng.randrange(len(other)) :]


def _wrong_extension(data, container, videos, rng):
    return data if rng.random() < 0.5 else _data_bits_flipped(data, container, videos, rng)


def _absurd_header(data, container, videos, rng):
    """Sizes, counts, durations and rates that no video has, in one to three fields."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        tag, offset, length = rng.choice(FIELDS.get(container, [(b"\x00\x00\x01", 1, 4)]))
        places = [found.end() + offset for found in re.finditer(re.escape(tag), data)]
        place = rng.choice(places[:4]) if places else rng.choice(_header(data))
        value = rng.choice([*ABSURD, rng.getrandbits(32)]) % 256**length
        order = "big" if container == "mp4" else "little"
        if container in ("mkv", "webm"):  # a length byte of EBML comes first
            length = max(1, data[place] & 0x0F if place < len(data) else 1)
            place, order, value = place + 1, "big", value % 256**length
        data[place : place + length] = value.to_bytes(length, order)[: max(0, len(data) - place)]
    return bytes(data)


def _crafted(promise, data, container, videos, rng):
    return crafted(data, container, promise, rng)


def _flipped(data: bytes, places, rng) -> bytes:
    flipped = bytearray(data)
    for place in places:
        flipped[place] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _header(data: bytes) -> range:
    """Where the header is: at the beginning, or where the index of an mp4 is."""
    start = max(0, data.find(b"moov")) if data.find(b"moov") > HEADER else 0
    return range(start, min(len(data), start + HEADER))


_DAMAGE = (
    _truncated,
    _header_bits_flipped,
    _data_bits_flipped,
    _deleted,
    _zeroed,
    _boxes_swapped,
    _spliced,
    _wrong_extension,
    _absurd_header,
)
KINDS = {damage.__name__.strip("_"): damage for damage in _DAMAGE}
KINDS |= {f"crafted_{promise}": partial(_crafted, promise) for promise in PROMISES}
