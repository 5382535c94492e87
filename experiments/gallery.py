"""A gallery of artifacts small enough to keep in the repository, each with a card.

    D3JAX_DATA_DIR=... python -m experiments.gallery [ENTRY ...] [--seeds 0,1,2]

An entry is DATASET_METHOD_BUDGET: as many stored numbers as so many whole images a class (on digits
D3's smallest budget is 2). It is distilled once for each seed; the artifact whose students are best
on validation images, which no run trains on, stays in `experiments/gallery/ENTRY/`, beside
`card.json`: what its students reach on all test images, its bytes, and the command, commit and
machine that made it. The test images choose nothing. `experiments/gallery/README.md` is the table
of all cards. `d3jax show` and `d3jax evaluate` take an entry's folder; `pytest -m slow
tests/test_gallery.py` judges each by other students.

On digits a seed of an entry takes half a minute to four minutes, students included; most on MNIST
and CIFAR-10 are not made yet.
"""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from d3jax import artifact
from d3jax.host import files
from d3jax.methods.dd import DDOptions
from d3jax.methods.seqmatch import SeqMatchOptions
from d3jax.run import options as config
from d3jax.run.tables import markdown_table
from experiments import runner
from experiments.cifar10_budgets import D3, PIXELS

GALLERY = Path(__file__).parent / "gallery"
LARGEST = 300_000  # bytes of an artifact
DATA = {
    "digits": config.Data(dataset="digits", validation=200),
    "mnist": config.Data(dataset="mnist", train_limit=10_000, validation=2000),
    "cifar10": config.Data(dataset="cifar10", train_limit=10_000, validation=2000),
}
BUDGETS = {"digits": (1, 10), "mnist": (1, 10), "cifar10": (1, 2)}


def _entries() -> dict[str, config.Run]:
    """The runs of all entries, by name."""
    found: dict[str, config.Run] = {}
    for dataset, data in DATA.items():
        small = dataset == "digits"
        plain = config.command("mtt")() if small else PIXELS
        generator = config.command("d3")() if small else D3
        for images in BUDGETS[dataset]:
            pixels = config.Parametrization(kind="pixels", images_per_class=images)
            gaussians = config.Parametrization(budget=2 if small and images == 1 else images)
            steps = DDOptions(images_per_step=1, steps=images, passes=3)
            runs: dict[str, config.Run] = {
                "d3": dataclasses.replace(generator, parametrization=gaussians),
                "mtt": dataclasses.replace(plain, parametrization=pixels),
                "dd": config.command("dd")(dd=steps, outer_steps=400),
                "dwa": config.command("dwa")(parametrization=pixels),
                "rded": config.command("rded")(parametrization=pixels),
            }
            if images > 1:  # its subsets need two images a class
                runs["seqmatch"] = config.command("seqmatch")(
                    parametrization=pixels,
                    seqmatch=SeqMatchOptions(subsets=2),
                    architecture=plain.architecture,
                )
            for method, run in runs.items():
                budget = gaussians.budget if method == "d3" else images
                found[f"{dataset}_{method}_{budget}"] = dataclasses.replace(
                    run, data=data, baselines=()
                )
    return found


ENTRIES = _entries()


def keep(entry: str, seeds: tuple[int, ...]) -> Path:
    """Copies the best of an entry's finished runs into the gallery, and writes its card."""
    runs = {seed: Path("runs/gallery") / f"{entry}-{seed}" for seed in seeds}
    reports = {seed: json.loads((run / "report.json").read_text()) for seed, run in runs.items()}
    best = max(seeds, key=lambda seed: _on_validation(reports[seed]) or 0.0)
    source, report = runs[best] / artifact.NAME, reports[best]
    record = json.loads((runs[best] / "record.json").read_text())
    if source.stat().st_size > LARGEST:
        raise SystemExit(f"{source} is larger than the gallery's {LARGEST:,} bytes")
    folder = GALLERY / entry
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / artifact.NAME)
    card: dict[str, Any] = {
        "entry": entry,
        **{name: report[name] for name in ("method", "dataset", "network", "accuracy", "floats")},
        "bytes": report["bytes"]["total"],
        "seed": best,
        "on_validation": {str(seed): _on_validation(reports[seed]) for seed in seeds},
        "cpu_seconds": sum(report["cpu_seconds"].values()),  # of experts and outer steps
        "command": f"python -m experiments.gallery {shlex.quote(entry)} --seeds "
        f"{','.join(map(str, seeds))}",
        **{name: record[name] for name in ("date", "commits", "hardware")},
    }
    files.write_json(folder / "card.json", card)
    return folder


def _on_validation(report: dict[str, Any]) -> float | None:
    """What students reached on validation images at the rate that is best there; None where a
    method has steps of its own, and no rate is chosen."""
    tried = report.get("learning_rates", {}).get("tried")
    return max(tried.values()) if tried else None


def table() -> str:
    """The gallery's page: the table of all cards."""
    cards = [json.loads(path.read_text()) for path in sorted(GALLERY.glob("*/card.json"))]
    header = ("entry", "network", "floats", "bytes", "test accuracy %", "seed", "CPU s", "commits")
    rows = [
        (
            card["entry"],
            card["network"],
            f"{card['floats']:,}",
            f"{card['bytes']:,}",
            f"{100 * card['accuracy']['mean']:.1f}",
            str(card["seed"]),
            f"{card['cpu_seconds']:.0f}",
            ", ".join(card["commits"]),
        )
        for card in cards
    ]
    return (
        "# Gallery\n\nArtifacts that `python -m experiments.gallery` has made: of the seeds in its "
        "card the one that is best\non validation images. `d3jax show ENTRY` draws one, `d3jax "
        "evaluate ENTRY` judges it. Accuracies are\nmeans over fresh students, all test images. "
        "CPU s: of its experts and outer steps.\n\n" + markdown_table(header, rows)
    )


if __name__ == "__main__":
    chosen, seeds = runner.arguments(ENTRIES, (0, 1, 2))
    for entry in chosen:
        runner.run("gallery", {entry: ENTRIES[entry]}, seeds=seeds, labels=list(ENTRIES))
        print(f"kept in {keep(entry, seeds)}")
        files.write_text(GALLERY / "README.md", table())
