"""Images per second of expert training: so many experts at once, convolution by convolution.

An epoch of a ConvNet (depth 3, CIFAR-10's shape, random images, batches of 256, no augmentation),
1024 images an expert, as one dispatch, its experts under vmap; `1 at once` is what training them
one after another takes. XLA's own convolution (`lax.conv`) has 64 images in one batch. A rate is
that of all experts together, per CPU second; the share is of the rate of a product of two 1024x1024
matrices measured beside it, counting the products of the forward pass three times.
"""

from functools import partial

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.flops import forward_flops
from benchmarks.outer_steps import CIFAR, lowered_by
from benchmarks.suite import Cases, Row, Table, cpu_seconds, lines, product_rate
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.experts import fresh_parameters
from d3jax.experts.epoch import epoch_function
from d3jax.networks import convolution

AT_ONCE = (1, 2, 4, 8)
NAMES: dict[convolution.Lowering, str] = {
    "winograd": "winograd (default)",
    "patches": "patches",
    "rows": "rows",
    "lax": "lax.conv",
}


def measure(lowering: convolution.Lowering, experts: int, width: int, rounds: int) -> Row:
    """One row."""
    images = 64 if lowering == "lax" else 1024
    network = networks.create("convnet", image_shape=CIFAR, num_classes=CLASSES, width=width)
    real = random_real(CIFAR, images)
    keys = jax.random.split(jax.random.key(0), experts)
    params = jax.vmap(fresh_parameters(network))(keys)
    with lowered_by(lowering):
        epoch = jax.jit(epoch_function(network, (), 256, 0.01)).lower(params, keys, real).compile()
    loss = np.asarray(epoch(params, keys, real)[1])
    seconds = min(cpu_seconds(lambda: epoch(params, keys, real)) for _ in range(rounds))
    rate = experts * images / seconds
    flops = 3 * forward_flops(network, CIFAR)
    return {
        "experts": experts,
        "width": width,
        "convolution": lowering,
        "images_per_second": rate,
        "product_share": rate * flops / product_rate(),
        "loss": float(loss.mean()),
    }


def cases(quick: bool) -> Cases:
    """Every number of experts with every convolution; quick: the default's."""
    found: Cases = {}
    for lowering, name in NAMES.items():
        if quick and lowering != "winograd":
            continue
        for experts in AT_ONCE[: 3 if lowering == "lax" else None]:
            found[f"width 32, {name}, {experts} at once"] = partial(
                measure, lowering, experts, 32, 1 if quick or lowering == "lax" else 3
            )
    for experts in () if quick else (1, 4):
        found[f"width 128, {NAMES['winograd']}, {experts} at once"] = partial(
            measure, "winograd", experts, 128, 2
        )
    return found


def table(rows: list[Row]) -> Table:
    """Rates, and the gain over one after another."""
    alone = {(r["width"], r["convolution"]): r for r in rows if r["experts"] == 1}
    body = []
    for row in rows:
        one = alone.get((row["width"], row["convolution"]))
        gain = f"{row['images_per_second'] / one['images_per_second']:.2f}" if one else ""
        share = f"{100 * row['product_share']:.0f} %"
        body.append([row["work"], f"{row['images_per_second']:,.0f}", gain, share])
    return ["experts", "images/s", "against one by one", "of the product rate"], body


def plot(rows: list[Row]) -> Figure:
    """A line for each convolution."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = row["work"].rpartition(",")[0]
        series.setdefault(name, []).append((row["experts"], row["images_per_second"]))
    return lines(series, "experts at once", "images per CPU second")
