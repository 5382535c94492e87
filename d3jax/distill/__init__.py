"""The inner loop, the outer step that is composed of objectives, and the loop over outer steps."""

from d3jax.distill.loop import Chunk as Chunk
from d3jax.distill.loop import Program as Program
from d3jax.distill.loop import Rows as Rows
from d3jax.distill.loop import alone as alone
from d3jax.distill.loop import chunk_function as chunk_function
from d3jax.distill.loop import drive as drive
from d3jax.distill.loop import run as run
from d3jax.distill.loop import start as start
from d3jax.host.callable import make_callable

make_callable(__name__, "d3jax.run.api", "distill")
