"""Draws the two pictures of docs/what-is-distillation.md from one run on the embedded digits.

    python -m experiments.explained

Trajectory matching of a ConvNet on ten images, one a class; the learned images start from real
ones. `what.png` shows all real images, those ten and the ten distilled ones, and how many test
images a network that saw no others gets right; `how.png` shows the ten as they are learned. Five
students each, one seed, at the best of several learning rates on training images. Two minutes.
"""

import jax
import numpy as np
from matplotlib.figure import Figure

import d3jax
from d3jax import data, networks
from d3jax.data.augment import default_strategy
from d3jax.distill.inner import mean_learning_rate
from d3jax.evaluate import classify, comparison, students
from d3jax.run import pictures
from d3jax.synthetic import pixels
from experiments.overview import PICTURES

STEPS = (0, 10, 50, 200, 1000)
RATES = (0.01, 0.03, 0.1)


def main() -> None:
    """Runs, judges and draws."""
    dataset = d3jax.load_data("digits")
    shape = {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
    normalization = data.Normalization.of(dataset.train_images)
    network = networks.create("convnet", width=32, **shape)
    real, test = dataset.real(), dataset.held_out(normalization)
    experts = d3jax.train_experts(network, real, d3jax.experts.Options(count=4, epochs=30))
    whole = float(np.mean(classify.accuracy(network, experts[:, -1], test)))
    real = real._replace(trajectories=experts)

    method = d3jax.mtt(network, pixels.create(num_items=10, **shape), d3jax.MTTOptions(), STEPS[-1])
    protocol = d3jax.Protocol(augmentation=default_strategy("digits"))
    choosing = comparison.choosing(dataset, normalization, seed=0)
    step, state = jax.jit(method.step), jax.jit(method.init)(jax.random.key(0), real)
    shown, reached = [], []
    for number in range(STEPS[-1] + 1):
        if number in STEPS:
            theta = method.result(state, jax.random.key(1))
            rates = (*RATES, float(mean_learning_rate(state.theta["learning_rates"])))
            judged, _ = students.evaluate_best(
                network, method.synthetic, theta, choosing, test, protocol, rates, jax.random.key(2)
            )
            shown.append(normalization.invert(np.asarray(theta["data"]["images"])))
            reached.append(float(judged.per_student.mean()))
            print(f"outer step {number}: {100 * reached[-1]:.1f} %", flush=True)
        state, _ = step(jax.random.key(3), state, real)

    names = [f"step {n}: {100 * a:.0f} %" for n, a in zip(STEPS, reached)]
    pictures.picture(PICTURES / "how.png", np.stack(shown), names)
    panels = {
        f"{len(dataset.train_images):,} real images: {100 * whole:.0f} %": dataset.train_images[
            :400
        ],
        f"10 real images: {100 * reached[0]:.0f} %": shown[0],
        f"10 distilled images: {100 * reached[-1]:.0f} %": shown[-1],
    }
    what(panels).savefig(PICTURES / "what.png")


def what(panels: dict[str, np.ndarray]) -> Figure:
    """Images u8[N, H, W, 1] of each panel, as near to a square as may be."""
    figure = Figure(figsize=(9, 2.9), layout="constrained", dpi=100)
    for axes, (title, images) in zip(
        figure.subplots(1, 3, width_ratios=(1.6, 1, 1)), panels.items()
    ):
        columns = 25 if len(images) > 10 else 4
        tiles = np.full((-(-len(images) // columns) * columns, 10, 10), 255, np.uint8)
        tiles[: len(images), 1:9, 1:9] = images[..., 0]
        sheet = tiles.reshape(-1, columns, 10, 10).swapaxes(1, 2).reshape(-1, 10 * columns)
        axes.imshow(sheet, cmap="gray", interpolation="nearest")
        axes.set_title(title, fontsize=12)
        axes.axis("off")
    return figure


if __name__ == "__main__":
    main()
