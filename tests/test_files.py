import errno
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.host import files
from d3jax.types import InputError


def test_json_of_arrays_and_of_what_is_not_finite(tmp_path):
    path = tmp_path / "report.json"
    given = {
        "scalars": [
            np.float32(0.5),
            np.int64(3),
            math.inf,
            math.nan,
            np.float64("inf"),
            None,
            True,
        ],
        "arrays": (jnp.arange(2), np.array([1.0, math.nan])),
        "path": tmp_path,
        7: "number",
    }
    files.write_json(path, given)
    assert json.loads(path.read_text()) == {
        "scalars": [0.5, 3, None, None, None, None, True],
        "arrays": [[0, 1], [1.0, None]],
        "path": str(tmp_path),
        "7": "number",
    }


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.txt"
    files.write_text(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(files.DiskFull, match=r"report\.txt needs 3\.0 kB; what was saved"):
        files.write_text(path, "new" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    files.write_text(str(path), "new ±")
    assert path.read_text(encoding="utf-8") == "new ±"


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "rows.json"
    files.write_json(path, [1])
    assert files.read_json(path) == [1]
    path.write_text("[1")
    with pytest.raises(InputError, match=r"rows\.json is damaged, .*: remove it, and run"):
        files.read_json(path)
