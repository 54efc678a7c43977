# SPDX-License-Identifier: Apache-2.0
"""Headers that a parser accepts and that promise what no video keeps: one field of a whole file is written anew.

Bits flipped at random are mostly caught by a parser's own checks. Here each field keeps its place, length and type, so
that what it promises reaches the code behind the parser.

Offsets are those of ISO/IEC 14496-12 (mp4), the AVI RIFF reference (avi), RFC 9559 (mkv, webm), ISO/IEC 13818-1 (ts)
and ITU-T H.264, 7.3.2.1.1 (h264).
"""

import random
import re
import struct
from itertools import chain
from typing import NamedTuple


class Field(NamedTuple):
    """Where a number stands in a file."""

    before: bytes  # what stands before it
    offset: int  # bytes from the end of that
    format: str  # of `struct`


WHOLE = (0, 1, 2, 255, 32_767, 65_535, 1_000_000, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
REAL = (-1.0, 0.0, 1e-9, 0.001, 1e12, 1e300, float("nan"), float("inf"), float("-inf"))
CLOCKS = ("00:00:00.000000001", "00:00:00.001000000", "00:00:01.000000000", "99:59:59.999999999", "00:00:00.-00000001")
# Fields by what they promise.
FIELDS = {
    "mp4": {
        "durations": [
            Field(b"mvhd", 16, ">I"),
            Field(b"mdhd", 16, ">I"),
            Field(b"tkhd", 20, ">I"),
            Field(b"elst", 8, ">I"),
            Field(b"stts", 12, ">I"),
        ],
        "time_bases": [Field(b"mvhd", 12, ">I"), Field(b"mdhd", 12, ">I")],
        "frame_counts": [
            *(Field(table, 4, ">I") for table in (b"stts", b"stsc", b"stco", b"elst")),
            Field(b"stts", 8, ">I"),
            Field(b"stsz", 4, ">I"),
            Field(b"stsz", 8, ">I"),
        ],
        "start_times": [Field(b"elst", 12, ">I"), Field(b"elst", 16, ">I")],
        "sizes": [*(Field(b"avc1", offset, ">H") for offset in (24, 26)), Field(b"tkhd", 76, ">I")],
    },
    "avi": {
        "durations": [Field(b"strh", 36, "<I"), Field(b"avih", 4, "<I")],
        "time_bases": [Field(b"strh", 24, "<I"), Field(b"strh", 28, "<I")],
        "frame_counts": [Field(b"avih", 20, "<I"), Field(b"strh", 36, "<I"), Field(b"indx", 8, "<I")],
        "start_times": [Field(b"strh", 32, "<I"), Field(b"avih", 28, "<I")],
        "sizes": [Field(b"strf", 8, "<I"), Field(b"strf", 12, "<I"), Field(b"avih", 36, "<I")],
    },
    "gif": {
        "durations": [Field(b"\x21\xf9\x04", 1, "<H")],  # of each picture
        "frame_counts": [Field(b"NETSCAPE2.0", 2, "<H")],  # how often it is played
        "sizes": [Field(b"GIF89a", 0, "<H"), Field(b"GIF89a", 2, "<H")],
    },
}
# Elements of Matroska by their identifiers.
ELEMENTS = {
    "durations": [b"\x44\x89", b"\x23\xe3\x83"],  # Duration, DefaultDuration
    "time_bases": [b"\x2a\xd7\xb1"],  # TimestampScale
    "frame_counts": [b"\x23\xe3\x83"],
    "start_times": [b"\xe7", b"\xa3", b"\x56\xaa"],  # Timestamp of a cluster, SimpleBlock, CodecDelay
    "sizes": [b"\xb0", b"\xba", b"\x54\xb0", b"\x54\xba"],  # PixelWidth, PixelHeight, DisplayWidth, DisplayHeight
}
PROMISES = ("durations", "time_bases", "frame_counts", "start_times", "sizes")


def crafted(data: bytes, container: str, promise: str, rng: random.Random) -> bytes:
    """Returns the file with one or two fields of a kind, see `PROMISES`, written anew.

    A container that has no field of the kind gets another of its own.
    """
    for _ in range(rng.randint(1, 2)):
        if container in ("mkv", "webm"):
            data = _with_element(data, promise, rng)
        elif container == "ts":
            data = _with_clock(data, promise, rng)
        elif container == "h264":
            data = _with_parameters(data, promise, rng)
        else:
            fields = FIELDS[container].get(promise) or [*chain(*FIELDS[container].values())]
            data = _with_field(data, fields, rng)
    return data


def _with_field(data: bytes, fields: list[Field], rng: random.Random) -> bytes:
    there = [(field, found.end()) for field in fields for found in re.finditer(re.escape(field.before), data)]
    if not there:
        return data
    field, place = rng.choice(there)
    size = struct.calcsize(field.format)
    value = struct.pack(field.format, rng.choice(WHOLE) % 256**size)
    return data[: place + field.offset] + value + data[place + field.offset + size :]


def _with_element(data: bytes, promise: str, rng: random.Random) -> bytes:
    """EBML: an identifier, a length whose first 1 bit tells how long it is itself, and so many bytes of content."""
    if promise == "durations" and rng.random() < 0.5:  # the tag with which muxers say how long a track is
        return re.sub(rb"\d\d:\d\d:\d\d\.\d{9}", rng.choice(CLOCKS).encode(), data)
    places = [found.end() for one in ELEMENTS[promise] for found in re.finditer(re.escape(one), data[:4000])]
    places = [place for place in places if data[place] & 0x80]  # lengths of one byte, as of all numbers
    if not places:
        return data
    place = rng.choice(places)
    start, length = place + 1, min(data[place] & 0x7F, 8)
    if data[place - 1] == 0xA3:  # a block: number of the track, then its time within the cluster
        return data[: start + 1] + struct.pack(">h", rng.choice((-32_768, -1, 32_767))) + data[start + 3 :]
    if promise == "durations" and length in (4, 8) and data[place - 2 : place] == b"\x44\x89":
        value = rng.choice(REAL)
        content = struct.pack(">d", value) if length == 8 else struct.pack(">f", max(min(value, 1e38), -1e38))
    else:
        content = (rng.choice([*WHOLE, 2**63 - 1, 2**64 - 1]) % 256**length).to_bytes(length, "big")
    return data[:start] + content + data[start + length :]


def _with_clock(data: bytes, promise: str, rng: random.Random) -> bytes:
    """MPEG-TS: time stamps of 33 bits before each picture, and no header; sizes are those of the codec."""
    starts = [found.end() for found in re.finditer(rb"\x00\x00\x01\xe0....", data, re.DOTALL)]
    if not starts:
        return data
    if promise == "sizes":
        found = data.find(b"\x00\x00\x01\x67")
        place = max(found, 0) + rng.randrange(7, 20)
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    chosen = {"durations": starts[-1:], "start_times": starts[:1]}.get(promise, rng.choices(starts, k=3))
    data = bytearray(data)
    for place in chosen:
        clock = rng.choice((0, 1, 90_000 * 3600, 90_000 * 30_000, 2**32, 2**33 - 1))
        parts = (0x31 | (clock >> 29) & 0x0E, clock >> 22 & 0xFF, clock >> 14 & 0xFE | 1, clock >> 7 & 0xFF)
        data[place + 1 : place + 6] = bytes((*parts, (clock << 1) & 0xFE | 1))
    return bytes(data)


def _with_parameters(data: bytes, promise: str, rng: random.Random) -> bytes:
    """A raw H.264 stream: its sequence parameters with another size, rate or shape of pixels; all else as it was."""
    found = re.search(rb"\x00\x00\x01\x67(.*?)(?=\x00\x00\x01|\x00\x00\x00\x01)", data, re.DOTALL)
    if not found:
        return data
    plain = found[1].replace(b"\x00\x00\x03", b"\x00\x00")
    bits = "".join(f"{byte:08b}" for byte in plain[3:])
    numbers, place = [], 0

    def golomb() -> None:
        nonlocal place
        zeros = bits.index("1", place) - place
        numbers.append(int(bits[place + zeros : place + 2 * zeros + 1], 2) - 1)
        place += 2 * zeros + 1

    for _ in range(3):  # identifier, bits of frame_num, kind of picture order
        golomb()
    for _ in range({0: 2, 2: 1}[numbers[2]]):  # bits of the picture order, reference frames
        golomb()
    head, place = bits[:place] + bits[place], place + 1  # and gaps_in_frame_num_value_allowed
    golomb()
    golomb()
    width, height = numbers[-2:]
    if promise == "sizes":
        width, height = (rng.choice((0, 1, 255, 4095, 65_535, 2**20)) for _ in range(2))
    shape = f"1{255:08b}{rng.choice(WHOLE) % 65_536:016b}{rng.choice(WHOLE) % 65_536:016b}"  # of a pixel
    units, scale = (rng.choice(WHOLE) for _ in range(2))
    # frame_mbs_only, direct_8x8, no cropping, VUI: shape, no overscan, no signal type, no chroma place, timing
    tail = f"1101{shape}000" + f"1{units:032b}{scale:032b}1" + "0000" + "1"
    bits = head + _golomb(width) + _golomb(height) + tail
    bits += "0" * (-len(bits) % 8)
    written = plain[:3] + bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
    written = re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", written)
    return data[: found.start(1)] + written + data[found.end(1) :]


def _golomb(number: int) -> str:
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits
