"""Seconds to train 5 students for 300 epochs on 20, 100 and 500 distilled images.

ConvNet depth 3, width 32, CIFAR-10's shape, batches of at most 256, without augmentation: all five
under vmap in one dispatch here, one after another in PyTorch, eager. Of 100 and 500 images fewer
epochs are timed, and 300 counted: an epoch takes as long as any other. Needs the extra `torch`.
"""

from functools import partial

from matplotlib.figure import Figure

from benchmarks.peers import compared
from benchmarks.peers.students import pair
from benchmarks.suite import Cases, Row, Table, bars, peers_table

EPOCHS = 300
TIMED = {20: 60, 100: 20, 500: 5}


def measure(images: int, rounds: int) -> Row:
    """One row."""
    timed = TIMED[images]
    row = compared(lambda: pair(32, 5, timed, images), rounds, scale=EPOCHS / timed)
    return {**row, "images": images, "epochs_timed": timed}


def cases(quick: bool) -> Cases:
    """Every number of images."""
    return {
        f"5 students, {EPOCHS} epochs, {images} images": partial(measure, images, 1 if quick else 3)
        for images in TIMED
    }


def table(rows: list[Row]) -> Table:
    """Seconds here and there."""
    return peers_table(rows)


def plot(rows: list[Row]) -> Figure:
    """The ratio."""
    return bars([r["work"] for r in rows], [r["ratio"] for r in rows], "ours / PyTorch")
