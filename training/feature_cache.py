# SPDX-License-Identifier: Apache-2.0
"""Each frame of a data set through the frozen image tower once, kept on disk.

While the towers are frozen nothing but the temporal part learns, and it reads frame embeddings: encoding them once
makes seconds of hours. All frames of a clip are kept, so that training may still pick other ones in every epoch.

    <cache_dir>/<tower, preprocessing, every, view>/<some clips>.safetensors

A clip is found by its path, size and date, not by where it stands in a split: the folds of a data set share their
clips, and a mended or added clip is the only one that is encoded anew. T frames, D embedding width.
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
from modeling_emoclip.video_decoding import is_image_path, read_video
from training.collate import augmentation_transforms, media_column
from training.recipe import Augmentation

CLIPS_PER_SHARD = 256  # what a killed run loses at most
FRAMES_PER_SHARD = 65_536  # of long clips a shard holds fewer: their embeddings wait in memory
FRAMES_PER_BATCH = 256
BYTES_PER_PART = 2**30  # of decoded frames, at the size they are stored in
MAX_FAILURES_SHOWN = 20
# All frames of a clip are kept, so what picks among them makes no other embeddings.
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
    """Augmented copies of every clip, to encode besides the plain one."""

    number: int
    augmentation: Augmentation


class FrameEmbeds:
    """`frame_embeds[row]` or `frame_embeds[row, view]` -> `(T, D)`; shards are mapped, not loaded. View 0 is plain.

    `skipped` lists the rows whose clips cannot be read; to ask for one is an error.
    """

    def __init__(self, places: list[list[tuple[Path, int, int] | None]]):
        self.places = places  # of each view, for each row: shard, first line, last line + 1
        self.num_views = len(places)  # with the plain one
        self.skipped = [row for row, views in enumerate(zip(*places, strict=True)) if None in views]
        self.opened: dict[Path, torch.Tensor] = {}  # of whole shards; a line is read from disk once it is used

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
    """Encodes what is not yet in `cache_dir`, which data sets, models and processes may share.

    Args:
        model: `EmoCLIPModel`, on its device.
        video_processor: its size, crop and normalisation count; its choice of frames does not.
        rows: `datasets.Dataset` with a `video` or `frames` column.
        every: of every so many frames one is kept.
        views: for each one, all clips are read once more.
        on_error: "raise" names the clips that cannot be read in a ValueError, "skip" in a warning: both once all
            others are encoded, and both try them again in the next run.
        seed: of the views; what is drawn depends on (seed, view, path of the clip) alone.
        tower: `tower_fingerprint(model)`, from callers with several splits.
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
    """Changes with any weight of the image tower or its projection, and with how it computes."""
    digest = hashlib.sha256()
    for name, weight in (model.vision_model.state_dict() | {"projection": model.visual_projection.weight}).items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = model.config.vision_config
    digest.update(f"{config.hidden_act} {config.layer_norm_eps} {config.num_attention_heads}".encode())
    return digest.hexdigest()[:20]


@dataclass
class _Part:
    """Some frames of a clip, `(T, 3, height, width)`, the last one before frame `end`; or why there are none."""

    row: int
    pixel_values: torch.Tensor | None = None
    end: int = 0
    is_last: bool = True
    error: str | None = None


class _Clips(torch.utils.data.Dataset):
    """`clips[row, start]`: of the frames that are kept, from `start` on, as many as memory and the tower take."""

    def __init__(self, media, video_processor, every: int, augmentation: Augmentation | None, draw: tuple[int, int]):
        self.media, self.video_processor, self.every = media, video_processor, every
        self.augmentation, self.draw = augmentation, draw
        self.augment = augmentation_transforms(augmentation) if augmentation else None

    def fingerprint(self, tower: str) -> str:
        """Changes with everything that the embeddings depend on, but the files: with what reads them too."""
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
            frame_bytes = 3 * (metadata.width or 1) * (metadata.height or 1)  # of images the size is not known yet
            return kept[start:][: min(FRAMES_PER_BATCH, max(1, BYTES_PER_PART // frame_bytes))]

        try:
            processor = self.video_processor
            frames, _ = read_video(media, choose_frames, name, processor.video_limits, processor.guard_decoding)
        except (ValueError, OSError) as error:
            return _Part(row, error=str(error) if name in str(error) else f"{name}: {error}")
        except Exception as error:  # not a bad clip but a bug, which nothing may pass over
            raise RuntimeError(f"reading {name} failed: {error!r}") from error
        end = start + len(frames)
        return _Part(row, self._preprocess(frames, media), end, is_last=end == len(kept))

    def _preprocess(self, frames: np.ndarray, media) -> torch.Tensor:
        pixels = torch.from_numpy(frames).movedim(-1, 1)  # (T, 3, H, W)
        if self.augment is not None:
            seed = _digest(*self.draw, _path(media) or _clip_key(media))
            with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator, on the CPU
                torch.default_generator.manual_seed(int.from_bytes(seed[:7], "big"))
                pixels = self.augment(pixels)
        options = {"do_sample_frames": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        return self.video_processor(pixels, **options)["pixel_values_videos"][0]


@cache
def _readers() -> list[str]:
    """The versions of what makes pixels of files and embeddings of pixels, and our own code of that kind."""
    packages = ("torch", "torchvision", "transformers", "av", "decord", "pillow")
    versions = [f"{name} {version(name)}" for name in packages if find_spec({"pillow": "PIL"}.get(name, name))]
    code = sorted(Path(modeling_emoclip.__file__).parent.glob("video_*.py"))
    return [*versions, _digest(*(path.read_bytes() for path in code)).hex()]


def _path(media) -> str | None:
    """Of a file or folder; `None` if the row holds the bytes."""
    return media if not isinstance(media, dict) else media["path"] if media["bytes"] is None else None


def _digest(*parts) -> bytes:
    coded = (part if isinstance(part, bytes) else os.fsencode(str(part)) for part in parts)
    return hashlib.sha256(b"\0".join(coded)).digest()[:16]


def _clip_key(media) -> bytes:
    """Tells a clip from others and from what it was: by path, size and date, those of each image too, which a folder's
    date does not follow when an image is overwritten; by all its bytes if the row holds them."""
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
    except OSError:  # reading will say why; once the clip is there, it is another
        return _digest(path)
    return _digest(path, status.st_size, status.st_mtime_ns, *images)


def _fill(folder: Path, model, clips: _Clips, keys: list[bytes], failures: dict, num_workers: int, title: str):
    """Encodes the clips that no shard of the folder has; adds key -> reason to `failures`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = _read_places(folder)
    first_rows = {key: row for row, key in reversed([*enumerate(keys)])}  # a clip may be in several
    rows = sorted(row for key, row in first_rows.items() if key not in found and key not in failures)
    options = {"batch_size": None, "num_workers": num_workers, "generator": torch.Generator()}
    loader = torch.utils.data.DataLoader(clips, sampler=[(row, 0) for row in rows], **options)
    progress = tqdm(loader, title, len(keys), initial=len(keys) - len(rows), unit="clip", disable=not rows)
    # A shard ends at a row that does not depend on where an earlier run stopped, and a batch ends with it: the same
    # clips are encoded together then, to the same bits.
    ends = {row for row, after in pairwise([*rows, -1]) if row // CLIPS_PER_SHARD != after // CLIPS_PER_SHARD}
    batch: list[_Part] = []  # short clips wait for each other, so that the tower gets full batches
    encoded: dict[bytes, list[torch.Tensor]] = {}
    for part in _all_parts(clips, progress):
        if part.error is not None:
            failures[keys[part.row]] = part.error
        else:
            batch.append(part)
        num_encoded = sum(map(len, chain.from_iterable(encoded.values())))
        is_shard = part.is_last and (part.row in ends or num_encoded >= FRAMES_PER_SHARD)
        if batch and (is_shard or sum(len(waiting.pixel_values) for waiting in batch) >= FRAMES_PER_BATCH):
            for one, embeds in zip(batch, _encode(model, [one.pixel_values for one in batch]), strict=True):
                encoded.setdefault(keys[one.row], []).append(embeds)
            batch = []
        if is_shard:
            _write(folder, {key: torch.cat(parts) for key, parts in encoded.items() if key not in failures})
            encoded = {}


def _all_parts(clips: _Clips, firsts: Iterable[_Part]) -> Iterator[_Part]:
    """First parts come from the processes that decode. A clip may last an hour: its others are read in this one."""
    for part in firsts:
        yield part
        while not part.is_last:
            part = clips[part.row, part.end]
            yield part


@torch.inference_mode()
def _encode(model, clips: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Each `(T, 3, height, width)` -> `(T, D)`."""
    model.vision_model.eval()  # with dropout no two runs would agree
    chunks = torch.cat(clips).to(model.device, model.dtype).split(FRAMES_PER_BATCH)
    pooled = [model.vision_model(pixel_values=chunk).pooler_output for chunk in chunks]
    return model.visual_projection(torch.cat(pooled)).float().cpu().split([len(clip) for clip in clips])


def _write(folder: Path, clips: dict[bytes, torch.Tensor]):
    """A shard, at once whole, under a name that stands for its clips."""
    if not clips:
        return
    keys = torch.frombuffer(bytearray(b"".join(clips)), dtype=torch.uint8).view(len(clips), -1)
    lengths = torch.tensor([len(clip) for clip in clips.values()])
    unfinished = folder / f"{uuid.uuid4().hex}.tmp"  # another machine may have a process of the same number
    save_file({"frame_embeds": torch.cat([*clips.values()]), "num_frames": lengths, "keys": keys}, unfinished)
    os.replace(unfinished, folder / f"{_digest(*clips).hex()}.safetensors")


def _read_places(folder: Path) -> dict[bytes, tuple[Path, int, int]]:
    """Clip -> shard, first line, last line + 1; removes what runs that were killed long ago left behind."""
    for unfinished in folder.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished it
            if time.time() - unfinished.stat().st_mtime > 24 * 60 * 60:
                unfinished.unlink()
    places = {}
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, "pt") as file:
                keys, ends = file.get_tensor("keys").numpy(), np.cumsum(file.get_tensor("num_frames").numpy()).tolist()
        except SafetensorError:  # cut off by a crash of the machine: its clips are encoded again
            continue
        places |= {key.tobytes(): (shard, *span) for key, *span in zip(keys, [0, *ends[:-1]], ends, strict=True)}
    return places


def _report(failures: list[str], title: str, on_error: str):
    more = [f"... and {len(failures) - MAX_FAILURES_SHOWN} more"] if len(failures) > MAX_FAILURES_SHOWN else []
    message = "\n".join([f"{title}: {len(failures)} cannot be read", *failures[:MAX_FAILURES_SHOWN], *more])
    if on_error == "raise":
        raise ValueError(f"{message}\nmend them, or leave them out with on_error='skip'; all others are encoded")
    logging.getLogger(__name__).warning(f"{message}\nthey are skipped")
