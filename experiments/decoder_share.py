"""How much of a budget the decoder should have: its width, and Gaussians for what is left.

    D3JAX_DATA_DIR=... python -m experiments.decoder_share [ROW ...] [--seeds 0]

Rows "DATA, WIDTH" of CIFAR-10 at a budget of 2 images a class, MNIST at 3 and Tiny-ImageNet (20
classes at 64x64) at 1: the settings of `cifar10_budgets.py`, `mnist_budgets.py` and
`tiny_imagenet_budgets.py`, in half their outer steps and with 3 students, judged on 2000 training
images that are held back. The rule of `--budget` (docs/choose-sizes.md) stands on it.

table: decoder_share (python -m experiments.tables)

| run | floats | bytes | test accuracy % | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| cifar10, 32 | 60,559 | 125,086 | 38.7 (1 seed) | 0.9 | 1 x 3 | 298 | 275 | 65 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-27; commits 12a8f6f.

end of table

    python -m experiments.decoder_share plot

writes pictures/decoder_share.png: accuracy against the decoder's share of the stored numbers.
"""

import sys
from typing import Any

from matplotlib.figure import Figure

from experiments import ablations, rows, runner
from experiments.ablations import changed
from experiments.cifar10_budgets import ROWS as CIFAR10
from experiments.frontier import PICTURES
from experiments.mnist_budgets import ROWS as MNIST
from experiments.tiny_imagenet_budgets import ROWS as TINY_IMAGENET

# Full runs, and decoders' widths from a fifth of the budget to nearly all of it.
DATA: dict[str, tuple[Any, tuple[int, ...]]] = {
    "cifar10": (CIFAR10["d3, 2"], (16, 32, 48, 56)),
    "mnist": (MNIST["d3, 3"], (8, 16, 24, 32)),
    "tiny_imagenet_20": (TINY_IMAGENET["20, d3"], (32, 64, 96, 112)),
}
ROWS = {
    f"{name}, {width}": changed(ablations.trial(run), parametrization={"decoder_width": width})
    for name, (run, widths) in DATA.items()
    for width in widths
}


def share(row: rows.Row) -> float:
    """Of the stored numbers, those that are no Gaussians': the decoder and its frozen statistics."""
    made = row["configuration"]["parametrization"]
    classes = 20 if row["label"].startswith("tiny") else 10
    gaussians = classes * made["latents_per_class"] * 2 * made["latent_size"]
    return 1 - gaussians / row["floats"]


def picture(found: list[rows.Row]) -> Figure:
    """A line for each data set."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in DATA:
        own = sorted((share(row), row) for row in found if row["label"].startswith(f"{name}, "))
        shares = [100 * each for each, _ in own]
        mean = [100 * row["accuracy"]["mean"] for _, row in own]
        best = max(mean, default=0.0)
        axes.plot(shares, [value - best for value in mean], marker="o", label=f"{name}: {best:.1f}")
    axes.set(xlabel="decoder, % of the stored numbers", ylabel="accuracy - the best, points")
    axes.grid(alpha=0.3)
    axes.legend(title="best, %")
    return figure


if __name__ == "__main__":
    if sys.argv[1:] == ["plot"]:
        drawn = picture(rows.by_label(rows.read("decoder_share")))
        drawn.savefig(PICTURES / "decoder_share.png", dpi=110)
        sys.exit()
    chosen, seeds = runner.arguments(ROWS, (0,))
    for row in chosen:
        own = {row: ROWS[row]}
        held_back = ablations.held_back(ROWS[row])
        runner.run("decoder_share", own, seeds=seeds, labels=list(ROWS), dataset=held_back)
