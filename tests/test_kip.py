"""Kernel ridge regression and solved labels by the tangent kernel: KIP's notebook and formulas."""

import numpy as np
import pytest
from test_data import needs_data

from d3jax import data
from experiments import kip


def test_one_hot_and_solved_labels_of_digits_are_kips_formulas():
    """Against the formulas in NumPy, with KIP's own two ridges, which are put in otherwise."""
    dataset = data.load("digits")
    found = kip.rows(dataset, 50, 3)
    train, test = (
        kip.normalized(x, dataset.train_images) for x in (dataset.train_images, dataset.test_images)
    )
    chosen = kip.drawn(dataset.train_labels, 50, 3)
    own, labels = train[chosen], kip.centred(dataset.train_labels, 10)
    k_ss, k_st = kip.tangent_kernel(own, own), kip.tangent_kernel(own, train)
    ridge = 1e-6 * np.eye(50)
    solved = (k_ss + ridge / 50) @ np.linalg.inv(k_st @ k_st.T + ridge / 50) @ k_st @ labels
    inverse = np.linalg.inv(k_ss + np.trace(k_ss) / 50 * ridge)
    for name, targets in (("one-hot", labels[chosen]), ("solved", solved)):
        predicted = kip.tangent_kernel(test, own) @ inverse @ targets
        error = 0.5 * np.square(predicted - kip.centred(dataset.test_labels, 10)).mean()
        accuracy = (predicted.argmax(1) == dataset.test_labels).mean()
        np.testing.assert_allclose(found[name], (error, accuracy), rtol=1e-3)
    assert found["solved"][1] > found["one-hot"][1] + 0.02


def test_the_tangent_kernel_is_that_of_a_wide_layer():
    """Of 200 000 units, drawn: outputs' gradients multiplied."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 4))
    weights = generator.normal(size=(200_000, 4)) * np.sqrt(2 / 4)
    biases = generator.normal(size=200_000) * np.sqrt(kip.BIAS_VARIANCE)
    outgoing = generator.normal(size=200_000) * np.sqrt(2)  # by 1 / sqrt(width)
    before = x @ weights.T + biases
    hidden, on = np.maximum(before, 0), (before > 0) * outgoing
    # In units of weights that all have the variance 1, as the kernel counts them.
    inner = (2 * x @ x.T / 4 + kip.BIAS_VARIANCE) * (on @ on.T)
    found = (inner + 2 * hidden @ hidden.T) / 200_000 + kip.BIAS_VARIANCE
    np.testing.assert_allclose(kip.tangent_kernel(x, x), found, rtol=0.03, atol=0.02)


@needs_data
@pytest.mark.slow
def test_kips_table():
    dataset, order = kip.cifar10()
    found = kip.rows(dataset, 100, 1, order, solve=False)
    np.testing.assert_allclose(found["one-hot"], (0.04893, 0.2429), atol=6e-5)
    found = kip.rows(dataset, 500, 2021, order)
    np.testing.assert_allclose(found["one-hot"], (0.04697, 0.3177), atol=6e-5)
    np.testing.assert_allclose(found["solved"], (0.03600, 0.4682), atol=3e-4)
