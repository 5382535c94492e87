"""Metrics as TensorBoard event files, without TensorFlow."""

from collections.abc import Mapping
from importlib.util import find_spec
from os import PathLike, fspath

from d3jax.types import InputError


def check_installed() -> None:
    """Raises InputError if tensorboardX, the extra `tensorboard`, is not installed."""
    if find_spec("tensorboardX") is None:
        raise InputError("TensorBoard event files need an extra: pip install 'd3jax[tensorboard]'")


class EventWriter:
    """Writes scalars to a new TensorBoard event file in `directory`, through tensorboardX.

    `first_step` is where a resumed run takes up: TensorBoard then hides what an interrupted run
    wrote from that step on. A context manager: leaving it closes the file.

    Raises InputError if tensorboardX, the extra `tensorboard`, is not installed.
    """

    def __init__(self, directory: str | PathLike[str], *, first_step: int | None = None) -> None:
        try:
            # Here and not above: an extra, that only those need who ask for event files.
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "TensorBoard event files need an extra: pip install 'd3jax[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(fspath(directory), purge_step=first_step, flush_secs=10)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one point per entry of `scalars`, a name and a number, at outer step `step`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Write what is pending, and close the file."""
        self._writer.close()

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
