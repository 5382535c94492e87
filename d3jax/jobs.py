"""The stages that the command line runs, from a configuration to files in a folder."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import (
    artifact,
    baselines,
    config,
    data,
    distill,
    evaluate,
    experts,
    networks,
    report,
    synthetic,
)
from d3jax.evaluate import Protocol
from d3jax.events import EventWriter
from d3jax.methods import d3
from d3jax.progress import Reporter
from d3jax.types import InputError, Network, Real

# What each stage draws follows from the run's seed and one of these.
_DISTILL, _FREEZE, _STUDENTS, _VALIDATE = range(1, 5)


def train_experts(options: config.Experts, reporter: Reporter) -> Path:
    """Runs `d3jax experts`; returns the folder of the snapshots."""
    dataset, normalization = options.data.load(options.seed)
    real = _train_arrays(dataset, normalization)
    path = _experts(options, dataset, normalization, real, reporter)
    reporter.say(f"experts: {path}")
    return path


def _train_arrays(dataset: data.Dataset, normalization: data.Normalization) -> Real:
    return data.device_arrays(
        dataset.train_images,
        dataset.train_labels,
        dataset.num_classes,
        normalization,
        dataset.class_names,
    )


def _experts(
    options: config.Experts | config.DistillD3,
    dataset: data.Dataset,
    normalization: data.Normalization,
    real: Real,
    reporter: Reporter,
) -> Path:
    network = options.architecture.create(dataset.image_shape, dataset.num_classes)
    recipe = experts.configuration(
        options.expert,
        dataclasses.asdict(options.architecture),
        {
            "images": experts.fingerprint(dataset.train_images, dataset.train_labels),
            "zca": normalization.zca is not None,
        },
        options.seed,
    )
    store = options.experts
    assert store is not None
    return experts.train(network, options.expert, real, store, recipe, reporter)


def distill_d3(options: config.DistillD3, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3`; returns the report, which is also in OUT/report.json.

    Raises:
      InputError, Interrupted, Diverged: as the stages do.
    """
    out = options.out
    dataset, normalization = options.data.load(options.seed)
    specification = options.parametrization.specification(dataset, normalization)
    options = config.resolved(options, specification)
    config.claim(out, options, dataset)
    if (out / "report.json").exists():
        reporter.say(f"{out} is finished; this is its report")
        finished = json.loads((out / "report.json").read_text())
        reporter.console.print(_table(finished))
        return finished

    network = options.architecture.create(dataset.image_shape, dataset.num_classes)
    data_ = synthetic.create(specification)
    method = d3.d3(network, data_, options.d3, options.outer_steps)
    key = jax.random.key(options.seed)
    real = _train_arrays(dataset, normalization)
    snapshots = _experts(options, dataset, normalization, real, reporter)
    trajectories = jnp.asarray(experts.Trajectories(snapshots).read_all(), jnp.float32)
    state = _distill(
        options,
        method,
        jax.random.fold_in(key, _DISTILL),
        real._replace(trajectories=trajectories),
        reporter,
    )

    theta = {k: v for k, v in state.theta.items() if k != "learning_rates"}
    theta = data_.freeze(theta, jax.random.fold_in(key, _FREEZE))
    if options.parametrization.labels == "expert":
        first = networks.unraveler(network)(trajectories[0, -1])
        theta["labels"] = d3.expert_labels(network, first, data_, theta)
    distilled = artifact.create(
        theta,
        method="d3",
        parametrization=specification,
        student_learning_rate=float(jnp.exp(jnp.mean(state.theta["learning_rates"]))),
        dtype=options.parametrization.storage,
        **_provenance(options, dataset, normalization),
    )
    artifact.save(distilled, out / "artifact.safetensors")
    distilled = artifact.load(out / "artifact.safetensors")
    _pictures(out, distilled, dataset, normalization, jax.random.fold_in(key, _STUDENTS))

    test = _held_out(dataset.test_images, dataset.test_labels, dataset, normalization)
    reached = evaluate_artifact(
        distilled, network, test, options.student, jax.random.fold_in(key, _STUDENTS), reporter
    )
    rows = _baselines(options, dataset, normalization, network, test, distilled, key, reporter)
    ledger = distilled.ledger
    finished = {
        "method": "d3",
        "dataset": Path(options.data.dataset).name,
        "network": options.architecture.network,
        "accuracy": reached.summary(),
        "baselines": rows,
        **ledger,
        "seconds": {
            "experts": experts.training_seconds(snapshots),
            "distill": distill.read_metrics(out / distill.METRICS)[-1]["seconds"],
            "student": reached.seconds,
        },
        "seed": options.seed,
        "versions": artifact.versions(),
    }
    report.write_json(out / "report.json", finished)
    reporter.console.print(_table(finished))
    reporter.say(f"written to {out}")
    return finished


def _distill(
    options: config.DistillD3, method: Any, key: Array, real: Real, reporter: Reporter
) -> Any:
    writer = EventWriter(options.out / "events") if options.tensorboard else None

    def observe(rows: list[dict[str, float]]) -> None:
        if writer is not None:
            for row in rows:
                scalars = {n: v for n, v in row.items() if n not in ("step", "seconds")}
                writer.write(int(row["step"]), scalars)

    try:
        return distill.run(
            method,
            key,
            real,
            steps=options.outer_steps,
            directory=options.out,
            reporter=reporter,
            chunk=options.chunk,
            checkpoint_minutes=options.checkpoint_minutes,
            observe=observe,
        )
    finally:
        if writer is not None:
            writer.close()


def _provenance(
    options: config.DistillD3, dataset: data.Dataset, normalization: data.Normalization
) -> dict[str, Any]:
    """What an artifact's header says of where it comes from."""
    recipe = None
    if normalization.zca is not None:
        # Recomputed from the same images, not stored: 38 MB at 32x32x3. The matrix is not hashed,
        # since its last digits depend on the linear algebra library; the images are.
        recipe = {
            "epsilon": 0.1,
            "images": experts.fingerprint(dataset.train_images, dataset.train_labels),
            "train_limit": options.data.train_limit,
            "validation": options.data.validation,
            "seed": options.seed,
        }
    return {
        "dataset": Path(options.data.dataset).name,
        "class_names": dataset.class_names,
        "normalization": {
            "mean": [float(v) for v in normalization.mean],
            "sd": [float(v) for v in normalization.sd],
            "zca": recipe,
        },
        "protocol": config.plain(options.student),
        "seed": options.seed,
    }


def _held_out(
    images: np.ndarray,
    labels: np.ndarray,
    dataset: data.Dataset,
    normalization: data.Normalization,
) -> Real:
    return data.device_arrays(images, labels, dataset.num_classes, normalization)


def evaluate_artifact(
    distilled: artifact.Artifact,
    network: Network,
    test: Real,
    protocol: Protocol,
    key: Array,
    reporter: Reporter,
) -> evaluate.Evaluation:
    """What fresh students of `network` reach on an artifact, as it is stored."""
    return evaluate.evaluate(
        network,
        distilled.synthetic,
        distilled.decodable(),
        test,
        protocol,
        distilled.header["student_learning_rate"],
        key,
        reporter,
    )


def _baselines(
    options: config.DistillD3,
    dataset: data.Dataset,
    normalization: data.Normalization,
    network: Network,
    test: Real,
    distilled: artifact.Artifact,
    key: Array,
    reporter: Reporter,
) -> dict[str, Any]:
    """Each baseline's accuracy and size, at no fewer floats than `distilled`."""
    per_class = baselines.images_per_class(
        distilled.ledger["floats"], dataset.image_shape, dataset.num_classes
    )
    rows = {}
    for name in options.baselines:
        number = 1 if name == "class_mean" else per_class
        images = baselines.create(name, dataset, normalization, number, options.seed)

        def stored(rate: float, images=images, name=name) -> artifact.Artifact:
            specification = {
                "kind": "pixels",
                "image_shape": list(dataset.image_shape),
                "num_classes": dataset.num_classes,
                "num_items": len(images),
            }
            return artifact.create(
                {"data": {"images": jnp.asarray(images)}},
                method=name,
                parametrization=specification,
                student_learning_rate=rate,
                dtype=options.parametrization.storage,
                **_provenance(options, dataset, normalization),
            )

        reporter.say(f"baseline {name}: {number} images per class")
        protocol = dataclasses.replace(options.student, learning_rate=None, with_means=False)
        rate = options.baseline_learning_rates[0]
        if len(options.baseline_learning_rates) > 1:
            held_out = _held_out(
                dataset.validation_images, dataset.validation_labels, dataset, normalization
            )
            found = {
                candidate: evaluate_artifact(
                    stored(candidate),
                    network,
                    held_out,
                    protocol,
                    jax.random.fold_in(key, _VALIDATE),
                    reporter,
                ).summary()["mean"]
                for candidate in options.baseline_learning_rates
            }
            rate = max(found, key=lambda candidate: found[candidate])
        reached = evaluate_artifact(
            stored(rate), network, test, protocol, jax.random.fold_in(key, _STUDENTS), reporter
        )
        ledger = stored(rate).ledger
        rows[name] = {
            "accuracy": reached.summary(),
            "floats": ledger["floats"],
            "bytes": ledger["bytes"]["total"],
            "seconds": reached.seconds,
            "learning_rate": rate,
        }
    return rows


def _table(finished: dict[str, Any]) -> Any:
    rows = [
        {
            "name": finished["method"],
            "accuracy": finished["accuracy"],
            "floats": finished["floats"],
            "bytes": finished["bytes"]["total"],
            "seconds": finished["seconds"]["student"],
        }
    ]
    rows += [{"name": name, **row} for name, row in finished["baselines"].items()]
    return report.comparison_table(rows)


def _pictures(
    out: Path,
    distilled: artifact.Artifact,
    dataset: data.Dataset,
    normalization: data.Normalization,
    key: Array,
) -> None:
    report.curves(out / "curves.png", distill.read_metrics(out / distill.METRICS))
    decoded_picture(out / "images.png", distilled, normalization, key)


def decoded_picture(
    path: Path, distilled: artifact.Artifact, normalization: data.Normalization, key: Array
) -> None:
    """One row a class: its first deterministic decodes, then samples (none of plain images)."""
    names = distilled.header["class_names"]
    shape = distilled.header["parametrization"]["image_shape"]

    def by_class(images: Array) -> np.ndarray:
        return normalization.invert(np.asarray(images)).reshape(len(names), -1, *shape)

    means = by_class(distilled.sample().images)[:, :10]
    title = f"{distilled.header['method']} on {distilled.header['dataset']}"
    if distilled.header["parametrization"]["kind"] == "gaussian":
        means = means[:, :4]
        draws = math.ceil((10 - means.shape[1]) / means.shape[1])
        samples = [by_class(distilled.sample(k).images) for k in jax.random.split(key, draws)]
        columns = np.concatenate(samples, axis=1)[:, : 10 - means.shape[1]]
        title += f": decoded means (first {means.shape[1]}), then samples"
        means = np.concatenate([means, columns], axis=1)
    report.picture(path, means, names, title)


def judge(
    path: Path,
    options: config.Judgement,
    reporter: Reporter,
) -> dict[str, Any]:
    """Runs `d3jax evaluate`: trains fresh students on the artifact at `path` and tests them.

    Raises:
      InputError: the artifact, the data set or the protocol cannot be used, or do not fit.
    """
    distilled = artifact.load(path)
    header = distilled.header
    specification = header["parametrization"]
    name = options.dataset or header["dataset"]
    zca = header["normalization"]["zca"]
    recipe = zca or {"train_limit": None, "validation": 0, "seed": 0}
    dataset = data.load(
        name,
        options.data_dir,
        train_limit=recipe["train_limit"],
        validation=recipe["validation"],
        seed=recipe["seed"],
    )
    if list(dataset.image_shape) != specification["image_shape"]:
        raise InputError(
            f"{name} has images of shape {list(dataset.image_shape)}, the artifact of "
            f"{specification['image_shape']}; name the data set that it was distilled from"
        )
    if dataset.num_classes != specification["num_classes"]:
        raise InputError(
            f"{name} has {dataset.num_classes} classes, the artifact "
            f"{specification['num_classes']}; name the data set that it was distilled from"
        )
    normalization = _stored_normalization(header, dataset)
    network = options.architecture.create(dataset.image_shape, dataset.num_classes)
    test = _held_out(dataset.test_images, dataset.test_labels, dataset, normalization)
    protocol = _stored_protocol(header, options, path)
    key = jax.random.fold_in(jax.random.key(options.seed), _STUDENTS)
    reached = evaluate_artifact(distilled, network, test, protocol, key, reporter)
    finished = {
        "artifact": path.name,
        "method": header["method"],
        "dataset": Path(name).name,
        "network": options.architecture.network,
        "accuracy": reached.summary(),
        **distilled.ledger,
        "seconds": {"student": reached.seconds},
        "seed": options.seed,
        "versions": artifact.versions(),
    }
    if options.json is not None:
        report.write_json(options.json, finished)
    reporter.console.print(_table({**finished, "baselines": {}}))
    return finished


def _stored_normalization(header: dict[str, Any], dataset: data.Dataset) -> data.Normalization:
    """The normalization that the artifact was made with, a ZCA matrix recomputed."""
    recipe = header["normalization"]["zca"]
    if recipe is not None:
        images = experts.fingerprint(dataset.train_images, dataset.train_labels)
        if images != recipe["images"]:
            raise InputError(
                "the artifact was whitened with other images than this data set's; name the data "
                "set that it was distilled from"
            )
        return data.Normalization.of(dataset.train_images, True, recipe["epsilon"])
    mean, sd = (np.asarray(header["normalization"][n], np.float32) for n in ("mean", "sd"))
    return data.Normalization(mean, sd)


def _stored_protocol(header: dict[str, Any], options: config.Judgement, path: Path) -> Protocol:
    """The protocol in the header, with what the command line says otherwise."""
    stored = dict(header["protocol"])
    if "augmentation" in stored:
        stored["augmentation"] = tuple(stored["augmentation"])
    said = {n: getattr(options, n) for n in ("students", "epochs", "learning_rate")}
    try:
        return Protocol(**{**stored, **{n: v for n, v in said.items() if v is not None}})
    except TypeError as error:
        raise InputError(f"the training protocol in {path} cannot be followed: {error}") from None


def show(path: Path, picture: Path | None, seed: int, reporter: Reporter) -> None:
    """Runs `d3jax show`: the artifact's header, ledger and picture.

    Raises:
      InputError: the artifact cannot be used.
    """
    distilled = artifact.load(path)
    reporter.console.print_json(data=distilled.header)
    ledger = distilled.ledger
    reporter.console.print(report.ledger_table(ledger["bytes"]))
    ipc = ledger["ipc_equivalent"]
    reporter.say(
        f"{ledger['floats']} stored floats; as many bytes as {ipc['float32']:.2f} float32 or "
        f"{ipc['uint8']:.2f} uint8 images per class"
    )
    normalization = distilled.header["normalization"]
    if normalization["zca"] is not None:
        reporter.say("the picture shows whitened images: their colours are not those of pixels")
    mean, sd = (np.asarray(normalization[n], np.float32) for n in ("mean", "sd"))
    target = path.with_suffix(".png") if picture is None else picture
    decoded_picture(target, distilled, data.Normalization(mean, sd), jax.random.key(seed))
    reporter.say(f"picture: {target}")
