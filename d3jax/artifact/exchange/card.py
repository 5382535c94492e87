"""The card of what was exported: README.md, and header.json for programs."""

from pathlib import Path
from typing import Any

from d3jax.artifact.exchange.published import HEADER
from d3jax.host import files
from d3jax.networks.architectures import LARGE

_FILES = {
    "torch": "images.pt (float32 [N, C, H, W]), labels.pt and lr.pt, as DD-Ranking reads them",
    "mtt": "images_best.pt (float32 [N, C, H, W]), labels_best.pt and lr_best.pt, as MTT and DATM "
    "have them",
    "dc": "one file res_*.pt, a dictionary whose `data` is a list of one [images, labels], as DC, "
    "DSA and DM write it (float32 [N, C, H, W], int64 [N])",
    "folder": "CLASS/classCLASS_idNUMBER.png, as RDED names them, and labels.npy in the order of "
    "the names",
    "npz": "distilled.npz: images uint8 [N, H, W, C], labels, class_names",
    "hub": "data/*.parquet (image, label), which the package datasets loads, and the artifact "
    "itself, artifact.safetensors, which d3jax reads",
}

_SCHEDULES = {
    "step": "at half time the rate is multiplied by {decay}",
    "cosine": "the rate falls to zero by a cosine",
    "half_cosine": "the rate falls to a half by a cosine of twice the length",
}
_NORMS = {
    "instance": "instance norm (GroupNorm of as many groups as channels)",
    "group": "group norm of 4 groups",
    "layer": "layer norm (GroupNorm of 1 group)",
    "batch": "batch norm",
    "none": "no norm",
}
_WEIGHTS = {
    "uniform_fan_in": "weights start as PyTorch's",
    "xavier_normal": "weights start as Xavier's normal, biases at zero",
}


def write(folder: Path, about: dict[str, Any]) -> None:
    """README.md and header.json of what `export` says in `about`."""
    files.write_json(folder / HEADER, about)
    files.write_text(folder / "README.md", text(about))


def text(about: dict[str, Any]) -> str:
    """The card as Markdown; of a hub copy, with the front matter that `datasets` reads."""
    header, ledger, told = (about[name] for name in ("artifact", "ledger", "export"))
    parts = [
        f"# {header['dataset']}, distilled by {header['method']}",
        f"{told['images']} images of {len(header['class_names'])} classes, written by "
        f"d3jax {header['versions']['d3jax']} from an artifact of {ledger['bytes']['total']:,} "
        f"bytes ({ledger['floats']:,} stored numbers).",
        f"Files: {_FILES[told['format']]}. `header.json` says all of this for programs.",
        _origin(header, told),
    ]
    if "rounding" in told:
        cost = told["rounding"]
        parts.append(
            f"Rounding to bytes clipped {100 * cost['clipped']:.2f} % of the values, and changed a "
            f"value by {cost['mean_change']:.2f} of 255 levels on average, "
            f"{cost['largest_change']:.1f} at most. `d3jax evaluate` on this folder says what that "
            f"costs in accuracy."
        )
    parts += ["## Train on it", _training(header, told)]
    front = ""
    if told["format"] == "hub":
        front = (
            "---\ntags:\n- dataset distillation\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: train\n    path: data/train-*.parquet\n---\n\n"
        )
    return front + "\n\n".join(parts) + "\n"


def _origin(header: dict[str, Any], told: dict[str, Any]) -> str:
    """Whether the images are the distilled data, or drawn from it."""
    if not told["draws"]:
        return "The images are the artifact's own: deterministic decodes."
    return (
        f"The distilled data is a generator, and the bytes above are its own. These images are "
        f"{told['draws']} of each of its items, drawn with seed {told['seed']}; students of d3jax "
        f"see fresh ones in every epoch, so that training on these alone is worth less."
    )


def _training(header: dict[str, Any], told: dict[str, Any]) -> str:
    used, protocol = told["normalization"], header["protocol"]
    numbers = {name: ", ".join(f"{v:.4f}" for v in used[name]) for name in ("mean", "sd")}
    scale = f"test images (pixels in [0, 1], less mean {numbers['mean']}, over sd {numbers['sd']})"
    if told["format"] not in ("torch", "mtt", "dc"):
        normalized = f"Images are pixels. Normalize them as you do {scale}"
    elif used["zca"] is not None:
        normalized = (
            "Images are whitened as MTT's --zca does: pixels in [0, 1], then ZCA of the training "
            "images (eps 0.1). Whiten test images likewise"
        )
    else:
        normalized = f"Images are normalized. Normalize {scale}"
    named = protocol.get("augmentation")
    augmented = "none" if named == [] else "all of DSA's" if named is None else ", ".join(named)
    rate = protocol.get("learning_rate") or header["student_learning_rate"]
    plain = {"decay": 0.1, "momentum": 0.9, "epochs": 300, **protocol}
    descent = f"AdamW: learning rate {rate:.4g}"
    if protocol.get("optimizer", "sgd") == "sgd":
        descent = f"SGD: learning rate {rate:.4g}, momentum {plain['momentum']}"
    steps = protocol.get("steps")
    length = f"{plain['epochs']} epochs" if steps is None else f"{steps} steps"
    lines = [
        f"{normalized}.\n",
        f"- network that they were distilled with, and judged by: {_network(header)}",
        f"- {descent}, weight decay {protocol.get('weight_decay', 5e-4)}, batches of "
        f"{protocol.get('batch_size', 256)}",
        f"- {length}, a test after the last; "
        f"{_SCHEDULES[protocol.get('schedule', 'step')].format(**plain)}",
        f"- augmentation, one of these in each step: {augmented}"
        if protocol.get("views", "none") == "none"
        else f"- views of each batch: {protocol['views']}, mixed by {protocol['mix']}, labels at "
        f"temperature {protocol['temperature']}",
    ]
    if header.get("teaching") is not None:
        lines.append("- the artifact's labels are a teacher's, of views; these are the items' own")
    if told["labels"] == "soft":
        form = (
            "logits, whose softmax"
            if told["format"] in ("torch", "mtt")
            else "probabilities, which"
        )
        lines.append(f"- labels are {form} the cross entropy takes as targets")
    for name in ("replay", "sequence"):
        if header.get(name) is not None:
            lines.append(
                f"- the images were learned for steps of their own (`{name}` in header.json), "
                f"which ordinary training does not go through"
            )
    return "\n".join(lines)


def _network(header: dict[str, Any]) -> str:
    """The network in words from which it can be built elsewhere."""
    made = header["architecture"]
    name, width = made.get("network"), made.get("width")
    norm, pooling, weights = (str(made.get(n)) for n in ("norm", "pooling", "initialization"))
    norm = _NORMS.get(norm, norm)
    if name == "convnet":
        grey = header["parametrization"]["image_shape"] == [28, 28, 1]
        pooled = f", 2x2 {pooling} pooling" if pooling in ("average", "max") else ""
        parts = (
            f"ConvNet of depth {made.get('depth')} and width {width}: blocks of a 3x3 convolution "
            f"with padding 1{' (in the first 3)' if grey else ''}, {norm}, ReLU"
            f"{pooled}; then a linear layer"
        )
    elif name == "resnet18":
        parts = f"ResNet-18 of width {width} with {norm}"
        if header["parametrization"]["image_shape"][0] < LARGE:
            parts += "; its stem is a 3x3 convolution without pooling"
    elif name == "mlp":
        parts = f"two hidden layers of {width} units with ReLU"
    else:
        parts = "LeNet-5 with ReLU and max pooling" if name == "lenet" else str(name)
    return f"{parts}; {_WEIGHTS.get(weights, _WEIGHTS['uniform_fan_in'])}"
