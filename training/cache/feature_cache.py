# SPDX-License-Identifier: Apache-2.0
"""Encodes each frame of a data set once with the frozen image tower and caches the embeddings on disk.

With frozen towers only the temporal part is trained, and its inputs are frame embeddings: encoding them once turns
hours into seconds. All frames of a clip are cached, so training can still sample different frames in every epoch.

    <cache_dir>/<tower, preprocessing, every, view>/<some clips>.safetensors

The key of a clip is its path, size and date, not its position in a split: folds share the embeddings of their clips,
and only added or changed clips are encoded again. T frames, D embedding width.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

import modeling_emoclip
from emoclip.frame_encoder import FrameEncoder
from modeling_emoclip.video_reading import is_image_path, read_video
from training.collate import augmentation_transforms, media_column
from training.recipe import Augmentation

CLIPS_PER_SHARD = 256  # a killed run loses at most this many
FRAMES_PER_SHARD = 65_536  # shards of long clips hold fewer clips, since embeddings stay in memory until written
FRAMES_PER_BATCH = 256
BYTES_PER_PART = 2**30  # of decoded frames, at their original resolution
MAX_FAILURES_SHOWN = 20
# Video processor fields that do not change the embeddings, such as frame sampling: all frames are encoded.
FRAME_CHOICE = {
    "num_frames",
    "fps",
    "do_sample_frames",
    "frame_sampling",
    "frame_stride",
    "seed",
    "video_limits",
    "guard_decoding",
    "auto_map",
    "processor_class",
}


@dataclass
class Views:
    """Augmented versions of every clip, encoded in addition to the plain one."""

    number: int
    augmentation: Augmentation


class FrameEmbeds:
    """Cached embeddings, memory-mapped: `frame_embeds[row]` or `frame_embeds[row, view]` -> `(T, D)`. View 0 is plain.

    `skipped` lists the rows whose clips cannot be read; indexing one of them raises a ValueError.
    """

    def __init__(self, places: list[list[tuple[Path, int, int] | None]]):
        self.places = places  # [view][row] -> shard, first line, last line + 1
        self.num_views = len(places)  # including the plain one
        self.skipped = [row for row, views in enumerate(zip(*places, strict=True)) if None in views]
        self.opened: dict[Path, torch.Tensor] = {}  # memory-mapped shards

    def select(self, rows: list[int]) -> "FrameEmbeds":
        return FrameEmbeds([[view[row] for row in rows] for view in self.places])

    def __len__(self) -> int:
        return len(self.places[0])

    def __getitem__(self, index: int | tuple[int, int]) -> torch.Tensor:
        row, view = index if isinstance(index, tuple) else (index, 0)
        place = self.places[view][row]
        if place is None:
            raise ValueError(f"the clip of row {row} cannot be read and was skipped: leave out the rows in .skipped")
        shard, start, end = place
        if shard not in self.opened:
            self.opened[shard] = safe_open(shard, "pt").get_tensor("frame_embeds")
        return self.opened[shard][start:end]


def encode_frames(
    model,
    video_processor,
    rows,
    cache_dir: Path,
    num_workers: int = 0,
    title: str = "",
    every: int = 1,
    views: Views | None = None,
    on_error: str = "raise",
    seed: int = 0,
    tower: str | None = None,
) -> FrameEmbeds:
    """Encodes the clips that are missing in `cache_dir`, which data sets, models and processes may share.

    Args:
        model: `EmoCLIPModel`, on its device.
        video_processor: its size, crop and normalization are used; its frame sampling is ignored.
        rows: `datasets.Dataset` with a `video` or `frames` column.
        every: keep every k-th frame.
        views: augmented views; all clips are read once more for each.
        on_error: report unreadable clips by a ValueError ("raise") or a warning ("skip"), in both cases after all
            others are encoded; the next run tries them again.
        seed: seed of the views; random draws depend only on (seed, view, path of the clip).
        tower: `tower_fingerprint(model)`, if the caller has already computed it.
    """
    column = media_column(rows.column_names)
    if column is None or every < 1 or on_error not in ("raise", "skip"):
        raise ValueError(f"no clips in {rows.column_names}, or every={every} < 1, or on_error={on_error!r} is unknown")
    media = rows.select_columns([column])
    keys = [_clip_key(row[column]) for row in media]
    tower = tower or tower_fingerprint(model)
    places, failures = [], {}
    for view in range(1 + (views.number if views else 0)):
        clips = _Clips(media, video_processor, every, views.augmentation if view else None, (seed, view))
        folder = cache_dir / clips.fingerprint(tower)
        _fill(folder, model, clips, keys, failures, num_workers, f"{title}, view {view}" if view else title)
        found = _read_places(folder)
        places.append([None if key in failures else found[key] for key in keys])
    if failures:
        _report(list(failures.values()), f"{title or column}, {len(keys)} clips", on_error)
    return FrameEmbeds(places)


def tower_fingerprint(model) -> str:
    """Computes a digest of the weights of the image tower and its projection, and of the tower's configuration."""
    digest = hashlib.sha256()
    for name, weight in (model.vision_model.state_dict() | {"projection": model.visual_projection.weight}).items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = model.config.vision_config
    digest.update(f"{config.hidden_act} {config.layer_norm_eps} {config.num_attention_heads}".encode())
    return digest.hexdigest()[:20]


@dataclass
class _Part:
    """Consecutive frames of a clip, `(T, 3, height, width)`, up to but excluding frame `end`; or the read error."""

    row: int
    pixel_values: torch.Tensor | None = None
    end: int = 0
    is_last: bool = True
    error: str | None = None


class _Clips(torch.utils.data.Dataset):
    """Data set of decoded parts: `clips[row, start]` has the kept frames from `start` on that fit in one batch."""

    def __init__(self, media, video_processor, every: int, augmentation: Augmentation | None, draw: tuple[int, int]):
        self.media, self.video_processor, self.every = media, video_processor, every
        self.augmentation, self.draw = augmentation, draw
        self.augment = augmentation_transforms(augmentation) if augmentation else None

    def fingerprint(self, tower: str) -> str:
        """Computes a digest of everything that affects the embeddings except the files, including decoder versions."""
        processor = {name: value for name, value in self.video_processor.to_dict().items() if name not in FRAME_CHOICE}
        augmented = [asdict(self.augmentation), self.draw] if self.augmentation else None
        described = [tower, processor, self.every, augmented, _readers()]
        return _digest(json.dumps(described, sort_keys=True, default=str)).hex()

    def __getitem__(self, index: tuple[int, int]) -> _Part:
        row, start = index
        (media,) = self.media[row].values()
        name = _path(media) or f"row {row}"
        kept = np.empty(0)

        def choose_frames(metadata) -> np.ndarray:
            nonlocal kept
            kept = np.arange(0, metadata.total_num_frames, self.every)
            frame_bytes = 3 * (metadata.width or 1) * (metadata.height or 1)  # unknown for images
            return kept[start:][: min(FRAMES_PER_BATCH, max(1, BYTES_PER_PART // frame_bytes))]

        try:
            processor = self.video_processor
            frames, _ = read_video(media, choose_frames, name, processor.video_limits, processor.guard_decoding)
        except (ValueError, OSError) as error:
            return _Part(row, error=str(error) if name in str(error) else f"{name}: {error}")
        except Exception as error:  # a bug, not a bad clip: never skipped
            raise RuntimeError(f"reading {name} failed: {error!r}") from error
        end = start + len(frames)
        return _Part(row, self._preprocess(frames, media), end, is_last=end == len(kept))

    def _preprocess(self, frames: np.ndarray, media) -> torch.Tensor:
        pixels = torch.from_numpy(frames).movedim(-1, 1)  # (T, 3, H, W)
        if self.augment is not None:
            seed = _digest(*self.draw, _path(media) or _clip_key(media))
            with torch.random.fork_rng(devices=[]):  # torchvision uses torch's global CPU generator
                torch.default_generator.manual_seed(int.from_bytes(seed[:7], "big"))
                pixels = self.augment(pixels)
        options = {"do_sample_frames": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        return self.video_processor(pixels, **options)["pixel_values_videos"][0]


@cache
def _readers() -> list[str]:
    """Lists the versions of the packages that decode and encode frames, and a digest of our own video code."""
    packages = ("torch", "torchvision", "transformers", "av", "decord", "pillow")
    versions = [f"{name} {version(name)}" for name in packages if find_spec({"pillow": "PIL"}.get(name, name))]
    code = sorted(Path(modeling_emoclip.__file__).parent.glob("video_*.py"))
    return [*versions, _digest(*(path.read_bytes() for path in code)).hex()]


def _path(media) -> str | None:
    """Returns the path of a file or folder; `None` if the row contains the bytes."""
    return media if not isinstance(media, dict) else media["path"] if media["bytes"] is None else None


def _digest(*parts) -> bytes:
    coded = (part if isinstance(part, bytes) else os.fsencode(str(part)) for part in parts)
    return hashlib.sha256(b"\0".join(coded)).digest()[:16]


def _clip_key(media) -> bytes:
    """Computes the cache key of a clip: a digest of its path, size and date, or of its bytes if the row contains them.
    Folders include each image's size and date, as overwriting an image does not change the folder's date."""
    path = _path(media)
    if path is None:
        return _digest(media and media["bytes"])
    try:
        status, images = os.stat(path), []
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                found = [(one.name, one.stat()) for one in entries if is_image_path(one.name)]
            images = [
                f"{name} {about.st_size} {about.st_mtime_ns}" for name, about in sorted(found, key=itemgetter(0))
            ]
    except OSError:  # reading the clip will report the error; the key changes once the file exists
        return _digest(path)
    return _digest(path, status.st_size, status.st_mtime_ns, *images)


def _fill(folder: Path, model, clips: _Clips, keys: list[bytes], failures: dict, num_workers: int, title: str):
    """Encodes the clips that are in no shard of the folder; adds key -> reason to `failures`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = _read_places(folder)
    first_rows = {key: row for row, key in reversed([*enumerate(keys)])}  # a clip may be in several rows
    rows = sorted(row for key, row in first_rows.items() if key not in found and key not in failures)
    encoder = FrameEncoder(model)
    options = {"batch_size": None, "num_workers": num_workers, "generator": torch.Generator()}
    loader = torch.utils.data.DataLoader(clips, sampler=[(row, 0) for row in rows], **options)
    progress = tqdm(loader, title, len(keys), initial=len(keys) - len(rows), unit="clip", disable=not rows)
    # Shard and batch boundaries do not depend on where an earlier run stopped: the same clips are encoded together,
    # so that the embeddings are bitwise reproducible.
    ends = {row for row, after in pairwise([*rows, -1]) if row // CLIPS_PER_SHARD != after // CLIPS_PER_SHARD}
    batch: list[_Part] = []  # collects short clips, so that the tower gets full batches
    encoded: dict[bytes, list[torch.Tensor]] = {}
    for part in _all_parts(clips, progress):
        if part.error is not None:
            failures[keys[part.row]] = part.error
        else:
            batch.append(part)
        num_encoded = sum(map(len, chain.from_iterable(encoded.values())))
        is_shard = part.is_last and (part.row in ends or num_encoded >= FRAMES_PER_SHARD)
        if batch and (is_shard or sum(len(waiting.pixel_values) for waiting in batch) >= FRAMES_PER_BATCH):
            for one, embeds in zip(batch, _encode(encoder, [one.pixel_values for one in batch]), strict=True):
                encoded.setdefault(keys[one.row], []).append(embeds)
            batch = []
        if is_shard:
            _write(folder, {key: torch.cat(parts) for key, parts in encoded.items() if key not in failures})
            encoded = {}


def _all_parts(clips: _Clips, firsts: Iterable[_Part]) -> Iterator[_Part]:
    """Yields the parts of each clip: the first from the worker processes, the rest of long clips read in this one."""
    for part in firsts:
        yield part
        while not part.is_last:
            part = clips[part.row, part.end]
            yield part


@torch.inference_mode()
def _encode(encoder: FrameEncoder, clips: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Encodes clips `(T, 3, height, width)` as `(T, D)` each."""
    encoder.model.vision_model.eval()  # with dropout no two runs would agree
    return encoder(torch.cat(clips)).float().cpu().split([len(clip) for clip in clips])


def _write(folder: Path, clips: dict[bytes, torch.Tensor]):
    """Writes a shard atomically, under a name derived from its clips' keys."""
    if not clips:
        return
    keys = torch.frombuffer(bytearray(b"".join(clips)), dtype=torch.uint8).view(len(clips), -1)
    lengths = torch.tensor([len(clip) for clip in clips.values()])
    unfinished = folder / f"{uuid.uuid4().hex}.tmp"  # process ids are not unique across machines
    save_file({"frame_embeds": torch.cat([*clips.values()]), "num_frames": lengths, "keys": keys}, unfinished)
    os.replace(unfinished, folder / f"{_digest(*clips).hex()}.safetensors")


def _read_places(folder: Path) -> dict[bytes, tuple[Path, int, int]]:
    """Reads the index: clip key -> shard, first line, last line + 1; removes temporary files older than a day."""
    for unfinished in folder.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            if time.time() - unfinished.stat().st_mtime > 24 * 60 * 60:
                unfinished.unlink()
    places = {}
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, "pt") as file:
                keys, ends = file.get_tensor("keys").numpy(), np.cumsum(file.get_tensor("num_frames").numpy()).tolist()
        except SafetensorError:  # truncated by a system crash: its clips are encoded again
            continue
        places |= {key.tobytes(): (shard, *span) for key, *span in zip(keys, [0, *ends[:-1]], ends, strict=True)}
    return places


def _report(failures: list[str], title: str, on_error: str):
    more = [f"... and {len(failures) - MAX_FAILURES_SHOWN} more"] if len(failures) > MAX_FAILURES_SHOWN else []
    message = "\n".join([f"{title}: {len(failures)} cannot be read", *failures[:MAX_FAILURES_SHOWN], *more])
    if on_error == "raise":
        raise ValueError(f"{message}\nmend them, or leave them out with on_error='skip'; all others are encoded")
    logging.getLogger(__name__).warning(f"{message}\nthey are skipped")
