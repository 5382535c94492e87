"""d3jax.run.effort: what a run costs, as images are counted."""

import dataclasses

import pytest
from test_baselines import dataset

from d3jax.evaluate import Protocol
from d3jax.evaluate.baselines import Stored
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import D3Options
from d3jax.methods.dd import DDOptions
from d3jax.run import effort
from d3jax.run.options import command

# 19 images of three classes; 2 experts of 5 epochs: 3 * 2 * 5 * 19.
EXPERTS = 570
# An outer step of D3: 9 * 4 * 6 for four inner steps on six items, 4 * 10 * 3 for the MMD.
STEP = 216 + 120
TWO = Stored(6 * 64, 2 * 6 * 64)  # as many floats as two images a class


def run(outer_steps, **changes):
    return command("d3")(
        d3=D3Options(inner_steps=4, inner_batch_size=6, mmd_samples=10),
        expert=ExpertOptions(count=2, epochs=5),
        student=Protocol(students=6, epochs=10),
        outer_steps=outer_steps,
        baselines=("random", "class_mean"),
        **changes,
    )


def test_what_is_counted():
    assert effort.distillation(run(7), dataset()) == EXPERTS + 7 * STEP
    divided = dataclasses.replace(run(7), subtasks="3")
    assert effort.distillation(divided, dataset()) == EXPERTS + 3 * 7 * STEP
    assert effort.of_all_baselines(run(7), 6, TWO, dataset()) == 6 * 540
    # 8 items, their means too; the learned rate and three others: six networks, twice.
    student = Protocol(students=6, epochs=10, with_means=True)
    meant = dataclasses.replace(run(7), student=student)
    assert effort.of_students(meant, 8) == 2 * 3 * 10 * 16 * 6
    assert effort.distillation(command("dd")(dd=DDOptions()), dataset()) is None


@pytest.mark.parametrize(
    ("outer_steps", "students"),
    [
        # Both baselines train nine images twice, ten epochs of gradients: 540 a network.
        (8, 6),  # 6 x 540 = 3240 of 570 + 8 x 336
        (7, 3),  # one for each learning rate; 570 + 7 x 336 = 2922 is less than 3240
    ],
)
def test_baselines_have_fewer_students_where_they_would_take_longer(outer_steps, students):
    assert effort.students_of_baselines(run(outer_steps), TWO, dataset()) == students


def test_students_that_are_asked_for_are_trained():
    assert effort.students_of_baselines(run(1, baseline_students=9), TWO, dataset()) == 9
