"""Judging an artifact by fresh students: `d3jax evaluate`."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax import Array

from d3jax import artifact, data, evaluate
from d3jax.artifact import exchange
from d3jax.data.sources import dataset_name
from d3jax.evaluate import Protocol, comparison, replay, sequence, unseen
from d3jax.evaluate.lessons import teaching_of
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.networks import known_options
from d3jax.networks.blocks import has_statistics
from d3jax.networks.own import is_own
from d3jax.run import exchange as other
from d3jax.run import scores, tables
from d3jax.run.commands import Judgement, OtherFiles
from d3jax.run.options import Architecture, plain
from d3jax.run.real import real_data
from d3jax.run.resolve import resolved_architecture
from d3jax.types import HeldOut, InputError, Network, Real, check_at_least_one


def judge(
    path: Path | artifact.Artifact,
    options: Judgement,
    reporter: Reporter,
    dataset: data.Dataset | None = None,
) -> dict[str, Any]:
    """Runs `d3jax evaluate`: trains fresh students on the artifact at `path` and tests them.

    path: of the artifact, or of the folder of the run that made it.
    dataset: instead of the one that the options, or the artifact, name.

    Returns:
      What the students reached; with `--networks` a dictionary of that by network, in `networks`.

    Raises:
      InputError: the artifact, the data set or the protocol cannot be used, or do not fit.
    """
    distilled, path = _opened(path, options, dataset)
    ledger = distilled.ledger  # of the file, whatever is left out below
    _check(options, distilled.header, path)
    if options.batch_statistics:
        theta = {name: group for name, group in distilled.theta.items() if name != "statistics"}
        distilled = distilled._replace(theta=theta)
    header = distilled.header
    chooses = bool(options.learning_rates) or options.scores
    dataset, normalization = real_data(header, options, dataset, training_images=chooses)
    if options.scores:
        dataset = scores.set_aside(dataset, header["seed"])
    judging = architectures(header, options, path)
    networks = [a.create(dataset.image_shape, dataset.num_classes) for a in judging]
    test = dataset.held_out(normalization)
    choosing = comparison.choosing(dataset, normalization, header["seed"]) if chooses else None
    found = {}
    for architecture, network in zip(judging, networks, strict=True):
        if options.networks is not None:
            reporter.say(f"students of {architecture.network}")
        reached, more = _reached(
            distilled, architecture, network, choosing, test, options, path, reporter
        )
        found[architecture.network or ""] = {
            "network": architecture.network,
            "architecture": plain(architecture),
            "accuracy": reached.summary(),
            **more,
            "learning_rate": reached.learning_rate,
            "seconds": {"student": reached.seconds},
        }
        if options.scores:
            protocol = stored_protocol(header, options, path)
            scored = scores.scored(
                distilled, dataset, normalization, architecture, network, protocol, options,
                reporter,
            )  # fmt: skip
            found[architecture.network or ""]["scores"] = scored
            reporter.console.print(scores.scores_table(scored))
    finished = {
        "artifact": path.name,
        "method": header["method"],
        **({"published": header["published"]} if "published" in header else {}),
        "dataset": dataset_name(options.dataset or header["dataset"]),
        **({"networks": found} if options.networks is not None else next(iter(found.values()))),
        **ledger,
        "seed": options.seed,
        "versions": artifact.versions(),
    }
    if options.json is not None:
        files.write_json(options.json, finished)
    reporter.console.print(tables.accuracy_table(finished))
    return finished


def _opened(
    given: Path | artifact.Artifact, options: Judgement, dataset: data.Dataset | None
) -> tuple[artifact.Artifact, Path]:
    """The artifact, perhaps made of another project's files, and the path it is known by."""
    if not isinstance(given, Path):
        return given, Path("artifact")
    located = artifact.located(given)
    ours = located.is_file() and located.suffix == ".safetensors"
    if ours or not exchange.is_published(given):
        if options.files != OtherFiles():
            raise InputError(
                f"{given} is an artifact of d3jax, which says how it is read: leave out --labels, "
                f"--mean, --sd, --whitening and --hard-labels"
            )
        return artifact.load(given), located
    name, root, rate = options.dataset, options.data_dir, options.learning_rate
    return other.read(given, name, root, options.files, rate, dataset), given


def _check(options: Judgement, header: dict[str, Any], path: Path) -> None:
    """Looks, before anything is read, whether the options can be followed."""
    if options.json is not None:
        files.check_target(options.json)
    check_at_least_one(options, "students", "real_epochs")
    zca = header["normalization"]["zca"]
    if zca is not None and options.validation not in (0, zca["validation"]):
        raise InputError(
            f"{path} is whitened by the training images of its run, which set {zca['validation']} "
            f"aside for validation: leave out --validation"
        )
    replayed = header.get("replay") is not None and not options.ordinary
    if replayed and (options.epochs, options.learning_rate, options.learning_rates) != (
        None, None, (),
    ):  # fmt: skip
        raise InputError(
            f"{path} brings its own steps and learning rates; with --ordinary students train "
            f"on it for --epochs at --learning-rate"
        )
    if options.real_accuracy is not None and not 0 < options.real_accuracy <= 1:
        raise InputError(f"real_accuracy is a fraction of 1, not {options.real_accuracy}")
    if options.scores and (replayed or header.get("sequence") is not None):
        raise InputError(f"{path} brings its own steps, which random images cannot go through")
    if options.scores and header.get("teaching") is not None:
        raise InputError(
            f"{path} has a teacher's labels of views, which random images would need as well: "
            f"scores compare artifacts whose items have labels"
        )
    if not options.learning_rates:
        return
    if options.learning_rate is not None:
        raise InputError("give --learning-rate, or --learning-rates to choose from, not both")
    if header.get("sequence") is not None:
        raise InputError(f"{path} brings a learning rate for each of its subsets: none is chosen")
    if not all(0 < rate < math.inf for rate in options.learning_rates):
        raise InputError(f"learning rates must be positive, they are {options.learning_rates}")


def _reached(
    distilled: artifact.Artifact,
    architecture: Architecture,
    network: Network,
    choosing: HeldOut | None,
    test: HeldOut,
    options: Judgement,
    path: Path,
    reporter: Reporter,
) -> tuple[evaluate.Evaluation, dict[str, Any]]:
    """What one network reaches, by the artifact's protocol or by its own steps; and what else
    belongs into the result."""
    header = distilled.header
    if header.get("replay") is None or options.ordinary:
        protocol, key = (
            stored_protocol(header, options, path),
            stage_key(options.seed, Stage.STUDENTS),
        )
        rates = options.learning_rates
        return by_students(
            distilled, network, test, protocol, key, reporter, rates=rates, choosing=choosing
        )
    source = _source(header["replay"], options)
    weights = unseen.weights(
        distilled,
        network,
        plain(architecture),
        unseen.NETWORKS if options.students is None else options.students,
        options.seed,
        options.data_dir,
        options.experts,
        reporter,
        source=source,
    )
    seen = seen_before(distilled, network, architecture, options.data_dir, source)
    samples = stage_key(options.seed, Stage.REPLAY)
    return replay.judge(distilled, network, weights, test, samples, reporter, seen)


def architectures(header: dict[str, Any], options: Judgement, path: Path) -> list[Architecture]:
    """The networks that judge: the header's, the one that the options name, or their `networks`.

    Of several, each takes those of the options (width, depth, norm ...) that it has.

    Raises:
      InputError: a network or an option that cannot be used.
    """
    if options.networks is None:
        return [stored_architecture(header, options.architecture, path)]
    if options.architecture.network is not None:
        raise InputError("give --network or --networks, not both")
    names = options.networks.split(",")
    if len(set(names)) < len(names) or "" in names:
        raise InputError(
            f"--networks are different names with commas between, such as convnet,mlp, not "
            f"{options.networks!r}"
        )
    said = {n: v for n, v in dataclasses.asdict(options.architecture).items() if v is not None}
    taken = {name: {n: v for n, v in said.items() if n in known_options(name)} for name in names}
    unused = sorted(set(said) - {n for own in taken.values() for n in own})
    if unused:
        raise InputError(f"none of {options.networks} has an option --{unused[0]}; leave it out")
    return [
        stored_architecture(header, Architecture(network=name, **own), path)
        for name, own in taken.items()
    ]


def seen_before(
    distilled: artifact.Artifact,
    network: Network,
    architecture: Architecture,
    data_dir: Path | None,
    source: str | None,
) -> Real | None:
    """What pretrained networks with batch norm have seen before an artifact's steps."""
    if not has_statistics(network, tuple(distilled.header["parametrization"]["image_shape"])):
        return None
    return unseen.images(distilled, plain(architecture), data_dir, source)


def _source(recipe: dict[str, Any], options: Judgement) -> str | None:
    """Where the data set lies that networks were pretrained on, if the command line says it."""
    if options.adapt_from is not None or options.dataset is None:
        return options.adapt_from
    source = recipe.get("source")
    stored = source.get("dataset") if isinstance(source, dict) else None
    return options.dataset if dataset_name(options.dataset) == stored else None


def stored_architecture(header: dict[str, Any], wanted: Architecture, path: Path) -> Architecture:
    """The network in the header, with what the command line says otherwise of it; or another.

    A network of the user's own is never taken from the header alone: it would run code that a file
    names.

    Raises:
      InputError: the header names none that can be built, or one of the user's own.
    """
    said = dataclasses.asdict(wanted)
    said = {name: value for name, value in said.items() if value is not None}
    stored = header["architecture"]
    if "network" not in said and is_own(stored.get("network")):
        raise InputError(
            f"{path} was distilled with a network that is not d3jax's, {stored['network']}; a file "
            f"must not run code that it names, so say yourself --network {stored['network']}, or "
            f"another network"
        )
    if said.get("network", stored.get("network")) != stored.get("network"):
        stored = {}
    kinds = {f.name: str for f in dataclasses.fields(Architecture)}
    kinds |= {"width": int, "depth": int}
    for name, value in stored.items():
        if name not in kinds or (value is not None and type(value) is not kinds[name]):
            raise InputError(f"the network in {path} cannot be built: its {name} is {value!r}")
    image_shape = header["parametrization"]["image_shape"]
    return resolved_architecture(Architecture(**{**stored, **said}), image_shape)


def stored_protocol(header: dict[str, Any], options: Judgement, path: Path) -> Protocol:
    """The protocol in the header, with what the command line says otherwise."""
    stored = dict(header["protocol"])
    if isinstance(stored.get("augmentation"), list):
        stored["augmentation"] = tuple(stored["augmentation"])
    said = {n: getattr(options, n) for n in ("students", "epochs", "learning_rate")}
    stored |= {"steps": None} if options.epochs is not None else {}
    try:
        return Protocol(**{**stored, **{n: v for n, v in said.items() if v is not None}})
    except TypeError as error:
        raise InputError(f"the training protocol in {path} cannot be followed: {error}") from None


def by_students(
    distilled: artifact.Artifact,
    network: Network,
    test: HeldOut,
    protocol: Protocol,
    key: Array,
    reporter: Reporter,
    *,
    rates: Sequence[float] = (),
    choosing: HeldOut | None = None,
) -> tuple[evaluate.Evaluation, dict[str, Any]]:
    """What fresh students of `network` reach on an artifact, as it is stored.

    rates: where there are some, students train at the best of these and of the artifact's own rate
      on the images `choosing`; the second result then says in `learning_rates` what each reached.
    """
    learned = distilled.header["student_learning_rate"]
    if distilled.header.get("sequence") is not None:
        recipe = sequence.recipe_of(distilled.header["sequence"])
        return sequence.judge(
            network,
            distilled.synthetic,
            distilled.decodable(),
            test,
            recipe,
            protocol,
            key,
            reporter,
        ), {}
    data_, theta, teaching = distilled.synthetic, distilled.decodable(), teaching_of(distilled)
    if choosing is None or not rates:
        return evaluate.evaluate(
            network, data_, theta, test, protocol, learned, key, reporter, teaching
        ), {}
    candidates = (learned, *rates)
    found, tried = evaluate.evaluate_best(
        network, data_, theta, choosing, test, protocol, candidates, key, reporter, teaching
    )
    shown = ", ".join(f"{r:.3g}: {a:.3f}" for r, a in zip(candidates, tried, strict=True))
    reporter.say(f"student learning rate {found.learning_rate:.3g} of {shown}")
    tried = dict(zip(candidates, tried))
    return found, {"learning_rates": {"learned": learned, "tried": tried}}
