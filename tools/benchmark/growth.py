# SPDX-License-Identifier: Apache-2.0
"""Growth part of the benchmark: the cost of a call as a function of frames, clips, labels and film length."""

from pathlib import Path

from tools.benchmark.measuring import LABELS, Sizes, in_turns, make_pipe, random_frames, write_film

Growth = dict[str, list[tuple[int, float]]]
TIMES = (1, 2, 4)


def growth(sizes: Sizes, folder: Path) -> Growth:
    """Measures the seconds of a call for each quantity: name -> (amount, seconds)."""
    pipe = make_pipe(sizes)
    film, few = str(write_film(folder / "growth_1.mp4", 1)), max(1, sizes.num_frames // 4)
    longer = {n: str(write_film(folder / f"growth_{n}.mp4", n)) for n in (2 * times for times in TIMES)}
    pipe.processor.video_processor.num_frames = few
    pipe(film, LABELS)
    ways = {
        "frames of a clip": {few * n: lambda n=n: pipe.encode_frames(random_frames(sizes, few * n)) for n in TIMES},
        "clips in a list": {n: lambda n=n: pipe([film] * n, LABELS) for n in TIMES},
        "new labels": {5 * n: lambda n=n: new_labels(pipe, film, 5 * n) for n in TIMES},
        "seconds of film": {n: lambda one=one: pipe(one, LABELS) for n, one in longer.items()},
    }
    flat = {(name, amount): run for name, by_amount in ways.items() for amount, run in by_amount.items()}
    seconds = in_turns(flat, sizes.rounds, "growth")
    return {name: [(amount, seconds[name, amount]) for amount in by_amount] for name, by_amount in ways.items()}


def new_labels(pipe, film: str, number: int) -> None:
    pipe._class_embeds.clear()
    pipe(film, [f"label {index}" for index in range(number)])


def plot(measured: Growth, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(measured), figsize=(11, 2.8), layout="constrained")
    top = max(seconds for points in measured.values() for _, seconds in points)
    for axis, (name, points) in zip(axes, measured.items(), strict=True):
        amounts, seconds = zip(*points, strict=True)
        axis.plot(amounts, seconds, "o-", color="#2a6f97", clip_on=False)
        axis.set(xlabel=name, xticks=amounts, xlim=(0, None), ylim=(0, 1.1 * top))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("seconds")
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)
    figure.suptitle("What a call costs as things grow (medians, one machine)", fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
