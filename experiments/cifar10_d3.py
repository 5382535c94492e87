"""D3 on CIFAR-10."""

from d3jax.config import Architecture, Data, DistillD3
from d3jax.evaluate import Protocol
from d3jax.methods import d3
from experiments import runner

PAPER = DistillD3(
    data=Data(dataset="cifar10", train_limit=10_000),
    architecture=Architecture(width=32),
    d3=d3.PAPER,
    student=Protocol(students=3),
    outer_steps=1000,
)

if __name__ == "__main__":
    runner.run("cifar10_d3", {"d3": PAPER}, seeds=(0, 1, 2), subset=2000)
