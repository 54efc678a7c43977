# SPDX-License-Identifier: Apache-2.0
"""Files that are made to cost much or to reach for others: what reading them comes to, and how much memory it takes.

python -m tools.reliability.hostile_files [--record]

Each is read in a process of its own, with the default limits. Exit status 1 if one takes 100 MB more than a
usual video.
"""

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import av
import numpy as np

from modeling_emoclip import video_guard
from modeling_emoclip.video_reading import read_video
from tools.reliability.fuzz_video import first_middle_last
from tools.reliability.report import keep
from tools.reliability.video_mutations import write_noise

MOST_MEGABYTES = 100


def gif(folder: Path) -> Path:
    """65,535 x 65,535 pixels in 40 bytes."""
    size = struct.pack("<HH", 65535, 65535)
    data = b"GIF89a" + size + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
    image = b"\x2c\x00\x00\x00\x00" + size + b"\x00\x02\x02\x44\x01\x00\x3b"
    (folder / "wide.gif").write_bytes(data + image)
    return folder / "wide.gif"


def strip(folder: Path) -> Path:
    """30,000 x 1 pixels; resized for a model by the shorter side, and only then cropped, a frame would take 4.5 GB."""
    size = struct.pack("<HH", 30_000, 1)
    data = b"GIF89a" + size + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
    (folder / "strip.gif").write_bytes(data + b"\x2c\x00\x00\x00\x00" + size + b"\x00\x02\x02\x44\x01\x00\x3b")
    return folder / "strip.gif"


def huge_frames(folder: Path) -> Path:
    """A real video of 8,192 x 8,192 pixels."""
    path = folder / "huge.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 8192
        stream.pix_fmt = "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(8192, 8192, "yuvj420p")))
        container.mux(stream.encode())
    return path


def absurd_length(folder: Path) -> Path:
    """Its table of times says 4 billion frames."""
    path = write_noise(folder / "long.mp4")
    data = bytearray(path.read_bytes())
    place = data.index(b"stts") + 12
    data[place : place + 4] = b"\xff\xff\xff\xf0"
    path.write_bytes(data)
    return path


def picture_bomb(folder: Path) -> Path:
    """A folder of frames, of which one is a PNG of 10,000 x 10,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    (folder / "frames").mkdir()
    compress, rows = zlib.compressobj(9), bytes(10_001)  # 8 bits of grey a pixel, and the filter's byte
    data = b"".join(compress.compress(rows) for _ in range(10_000)) + compress.flush()
    head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (folder / "frames" / "0.png").write_bytes(png)
    return folder / "frames"


def playlist(folder: Path) -> Path:
    """An HLS playlist that names another video; FFmpeg itself would open it."""
    other = write_noise(folder / "other.ts", codec="mpeg2video")
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{other}\n#EXT-X-ENDLIST\n"
    (folder / "playlist.mp4").write_text(text)
    return folder / "playlist.mp4"


def concatenation(folder: Path) -> Path:
    """A list for FFmpeg's `concat` that names another video."""
    write_noise(folder / "part.mp4")
    (folder / "list.mkv").write_text("ffconcat version 1.0\nfile part.mp4\n")
    return folder / "list.mkv"


FILES = {
    "GIF of 65,535 x 65,535 pixels, 40 bytes": gif,
    "GIF of 30,000 x 1 pixels, 40 bytes": strip,
    "video of 8,192 x 8,192 pixels": huge_frames,
    "MP4 whose tables say 4 billion frames": absurd_length,
    "PNG of 10,000 x 10,000 pixels among the frames of a folder": picture_bomb,
    "HLS playlist that names another file": playlist,
    "FFmpeg list that names another file": concatenation,
}


def attempt(path: str) -> tuple[str, float]:
    """What reading comes to, and the seconds it took."""
    start = time.perf_counter()
    try:
        frames, metadata = read_video(path, first_middle_last)
    except ValueError as error:
        said = str(error).replace(str(Path(path).parent) + "/", "")
        return f"refused: {said}", time.perf_counter() - start
    return f"decoded: {metadata.total_num_frames:,} frames, {np.shape(frames)}", time.perf_counter() - start


def peak_megabytes() -> float:
    """Of this process and those that read its videos, as Linux counts it (getrusage would count the parent's too)."""
    readers = [reader.process.pid for reader in video_guard._all if reader.process.poll() is None]
    status = [Path(f"/proc/{process}/status").read_text() for process in ["self", *readers]]
    return sum(int(re.search(r"VmHWM:\s+(\d+)", text)[1]) for text in status) / 1024


def in_child(path: Path) -> dict:
    """The attempt in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="into docs/reliability.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        outcome, seconds = attempt(options.child)
        print(json.dumps({"outcome": outcome, "seconds": seconds, "megabytes": peak_megabytes()}))
        return 0
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        usual = in_child(write_noise(folder / "usual.mp4"))["megabytes"]
        for what, make in FILES.items():
            result = in_child(make(folder))
            results.append({"what": what} | result | {"megabytes": result["megabytes"] - usual})
            print(f"{what}: {result['outcome']}; {results[-1]['megabytes']:.0f} MB, {result['seconds']:.2f} s")
    if options.record:
        keep("hostile_files", {"files": results})
    return int(any(one["megabytes"] > MOST_MEGABYTES for one in results))


if __name__ == "__main__":
    sys.exit(main())
