"""The house: who imports whom, and what an import needs."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import d3jax

ROOT = Path(__file__).parent.parent
WITHOUT = """
import sys
class Missing:
    names = {"tyro", "tensorflow_datasets", "array_record", "tensorstore", "orbax", "sklearn"}
    names |= {"matplotlib", "PIL"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_nothing_imports_upwards():
    run = subprocess.run(
        ["lint-imports", "--no-cache"], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_public_name_is_there_and_every_room_has_a_docstring():
    for name in d3jax.__all__:
        assert getattr(d3jax, name) is not None
    for module in pkgutil.walk_packages(d3jax.__path__, "d3jax."):
        if module.name != "d3jax.__main__":
            assert inspect.getdoc(importlib.import_module(module.name)), module.name


def test_functions_methods_students_and_artifacts_need_jax_flax_optax_and_safetensors_only(
    tmp_path,
):
    code = """
import jax, numpy as np
import d3jax
from d3jax import evaluate, networks
from d3jax.methods.d3 import D3Options
from d3jax.synthetic import gaussian
network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=3, width=4)
assert "flax.nnx" not in sys.modules  # it takes as long as the rest of Flax
assert networks.wrap.__name__ == "wrap"
data = gaussian.create(image_shape=(8, 8, 1), num_classes=3, width=8, latent_size=2)
method = d3jax.d3(network, data, D3Options(trajectory=False, mmd_samples=2), 1)
jax.eval_shape(data.init, jax.random.key(0), None)
protocol = evaluate.Protocol(students=1, epochs=1, augmentation=())
print(d3jax.mmd2(np.zeros((3, 2)), np.ones((3, 2))))
from d3jax import artifact
"""
    run = subprocess.run([sys.executable, "-c", WITHOUT + code], text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
