"""Fresh students on distilled data, and what they are compared with."""

from d3jax.evaluate.classify import accuracy as accuracy
from d3jax.evaluate.classify import answers as answers
from d3jax.evaluate.epochs import begun as begun
from d3jax.evaluate.epochs import epochs_function as epochs_function
from d3jax.evaluate.lessons import Teaching as Teaching
from d3jax.evaluate.lessons import view_labels as view_labels
from d3jax.evaluate.protocol import Protocol as Protocol
from d3jax.evaluate.protocol import check as check
from d3jax.evaluate.students import Evaluation as Evaluation
from d3jax.evaluate.students import evaluate as evaluate
from d3jax.evaluate.students import evaluate_best as evaluate_best
from d3jax.evaluate.students import population_statistics as population_statistics
from d3jax.evaluate.students import tested as tested
from d3jax.evaluate.students import train_students as train_students
from d3jax.host.callable import make_callable

make_callable(__name__, "d3jax.run.api", "evaluate")
