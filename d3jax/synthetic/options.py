"""The flags that say how distilled data is stored, and the specification that they make."""

import dataclasses
import math
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from d3jax import data
from d3jax.synthetic import budget
from d3jax.types import InputError, PyTree, check_at_least_one

_OWN = {
    "gaussian": (
        "latents_per_class",
        "latent_size",
        "decoder",
        "decoder_width",
        "output",
        "variance",
        "rounding",
        "start",
        "start_steps",
        "class_embedding",
    ),
    "pixels": ("images_per_class", "start"),
    "spectral": ("spectra_per_class", "transformations", "rank", "start"),
    "generated": ("images_per_class", "generator_width", "store", "start"),
}
KINDS = tuple(_OWN)
_COUNT = {
    "gaussian": "latents_per_class",
    "pixels": "images_per_class",
    "spectral": "spectra_per_class",
    "generated": "images_per_class",
}
_SIZES = ("latents_per_class", "latent_size", "decoder", "decoder_width")
_USUAL_BUDGET = 2.0  # images per class, of Gaussians from 16 pixels on
_FITTED = ("real", "kmeans")  # starts of Gaussians that take steps
# Of Gaussians: the paper's; a specification says what is not.
_PLAIN = {"variance": "each", "rounding": "none", "start": "noise", "class_embedding": False}


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """How distilled data is stored; each kind has options of its own."""

    kind: Annotated[
        Literal["gaussian", "pixels", "spectral", "generated"] | None,
        tyro.conf.arg(name="parametrization"),
    ] = None
    """Gaussians in a latent space with a decoder, plain pixels, products of spectrum tensors and
    transformations, or images that a generator changes; default gaussian for d3, else pixels."""
    budget: float | None = None
    """As many stored numbers as so many whole images a class: the sizes below follow from it, those
    that are given stay; default 2 for gaussian from 16 pixels on, where no size is given."""
    budget_bytes: int | None = None
    """As many bytes for all stored arrays, instead, a teacher's too; --storage and --rounding say
    what a number takes."""
    images_per_class: int | None = None
    """Pixels, generated: images per class; default 1, for seqmatch one a subset (dd has
    --images-per-step instead)."""
    latents_per_class: int | None = None
    """Gaussian: Gaussians per class; default by the budget, below 16 pixels 5; 1 where another size
    is given; for seqmatch at least one a subset."""
    latent_size: int | None = None
    """Gaussian: length of a latent vector; default by the budget, else 8 up to 16 pixels, 64 above
    (large: 4 x its width)."""
    decoder: Literal["small", "medium", "large"] | None = None
    """Gaussian: the decoder's kind; default small."""
    decoder_width: int | None = None
    """Gaussian: channels of the decoder's first stage; default by the budget, else by image size
    and kind."""
    output: Literal["pixels", "normalized"] | None = None
    """Gaussian: what the decoder's tanh spans: valid pixels (default; with --zca all but a
    thousandth of whitened values), or (-1, 1) in normalized units (the paper)."""
    variance: Literal["each", "class", "none"] | None = None
    """Gaussian: log variances of each Gaussian (default), shared by those of a class, or none: only
    means are stored and decoded (an ablation)."""
    rounding: Literal["none", "float16", "int8"] | None = None
    """Gaussian: round latents and decoder in every step as the artifact will store them, so that
    storage costs no accuracy; int8 then stores a byte a number, whatever --storage says; default
    none."""
    start_steps: int | None = None
    """Gaussian: Adam steps of --start real or kmeans; default 500."""
    class_embedding: bool = False
    """Gaussian: the decoder adds a learned vector of the class to a latent's projection, so that
    latents need not carry the class."""
    spectra_per_class: int | None = None
    """Spectral: spectrum tensors per class; default 2, for seqmatch at least one a subset."""
    transformations: int | None = None
    """Spectral: transformations that all classes share; each makes an image of each spectrum;
    default 4."""
    rank: int | None = None
    """Spectral: side of a spectrum tensor; default half the image's."""
    generator_width: int | None = None
    """Generated: channels of the generator's finest scale; default 32, up to 16 pixels 8."""
    store: Literal["images", "generator"] | None = None
    """Generated: what the artifact holds, the images that were made (default), or the generator and
    the images that it began with, so that it can make others (`mgdd --generator`)."""
    start: Literal["real", "kmeans", "noise"] | None = None
    """What images start from: real ones of their classes, drawn at random (default but for
    gaussian), the centres of k-means within each class, or noise (default for gaussian). A
    Gaussian's means and the decoder are fitted to images first."""
    labels: Literal["hard", "learned", "expert", "views", "teacher", "solved"] | None = None
    """Hard labels (default, but for frepo); labels learned with the data, from one-hot ones; the
    first expert's softmax, given once: on the real images that the data starts from, else (and for
    d3, dwa and rded) on what was distilled; or those with which it predicts real images best by
    least squares, solved at the end, which students meet by squared error. For dwa and rded: a
    teacher's logits for each of the views that students see (see --student.views), stored; or the
    teacher itself, stored, which labels them."""

    def resolved(
        self,
        dataset: data.Dataset,
        *,
        kind: str = "pixels",
        items: int | None = None,
        least: int = 1,
        storage: str = "float16",
        classes: int | None = None,
        beside: PyTree = None,
    ) -> "Parametrization":
        """Every option of the kind filled in; those of other kinds stay None.

        Args:
          dataset: whose images.
          kind: the one to take where none is named.
          items: images in all, where the method counts them itself.
          least: the fewest images, Gaussians or spectra of a class that a default may give.
          storage: of the artifact, for a budget of bytes.
          classes: that share a budget; default all (subtasks have one each).
          beside: shapes of what is stored besides, such as a teacher, and counts in a budget.

        Raises:
          InputError: an option of another kind, or items that cannot be divided as the kind needs.
        """
        kind = self.kind or kind
        for name in sorted(of_other_kinds(kind)):
            if getattr(self, name) not in (None, False):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is not an option of the parametrization {kind}")
        if self.variance == "class" and least > 1:
            raise InputError(
                "the Gaussians of a class are in different subsets, which cannot share a variance: "
                "give --variance each or none"
            )
        if self.start_steps is not None and self.start not in _FITTED and kind == "gaussian":
            raise InputError("--start-steps are those of --start real or kmeans: give both")
        said = {name: getattr(self, name) for name in _OWN[kind]}
        if items is not None:
            if said[_COUNT[kind]] is not None:
                flag = "--" + _COUNT[kind].replace("_", "-")
                raise InputError(f"give the number of images, or {flag}, not both")
            each = self.transformations or 4 if kind == "spectral" else 1
            number, rest = divmod(items, dataset.num_classes * each)
            if rest and kind != "pixels":
                raise InputError(
                    f"{items} images are not as many for each of {dataset.num_classes} classes"
                    + (f" and {each} transformations" if each > 1 else "")
                )
            said[_COUNT[kind]] = None if rest else number
        defaults = _defaults(kind, self, dataset)
        small = dataset.image_shape[0] < 16 or any(said.get(name) for name in _SIZES)
        if self.budget is not None or self.budget_bytes is not None:
            if items is not None:
                raise InputError("a budget is not for a method that counts its images itself")
            if self.labels == "views":
                flag = "--" + _COUNT[kind].replace("_", "-")
                raise InputError(
                    f"a budget does not count labels of views, of which students' epochs say how "
                    f"many there are: give {flag} instead"
                )
            said |= self._within_budget(kind, defaults, said, dataset, storage, classes, beside)
            if said[_COUNT[kind]] < least:
                raise InputError(f"the budget buys fewer than {least} items a class, one a subset")
        elif kind == "gaussian" and items is None and not small:
            usual = dataclasses.replace(self, budget=_USUAL_BUDGET)
            with suppress(InputError):  # too little for the few classes of a subtask
                defaults |= usual._within_budget(kind, defaults, said, dataset, storage, classes)
        defaults[_COUNT[kind]] = max(defaults[_COUNT[kind]], least)
        filled = {**defaults, **_known(said)}
        if items is not None and kind == "pixels" and said["images_per_class"] is None:
            filled["images_per_class"] = None
        return Parametrization(kind=kind, labels=self.labels or "hard", **filled)  # type: ignore[arg-type]

    def _within_budget(
        self,
        kind: str,
        defaults: dict[str, Any],
        said: dict[str, Any],
        dataset: data.Dataset,
        storage: str,
        classes: int | None,
        beside: PyTree = None,
    ) -> dict[str, Any]:
        """The sizes that a budget allows."""
        number = dataset.num_classes if classes is None else classes
        names = tuple(map(str, range(number)))
        own = dataset._replace(class_names=names)
        half = np.full(dataset.image_shape[2], 0.5, np.float32)
        known = {**defaults, **_known(said)}
        others = dataset.num_classes - number if self.labels == "expert" else 0

        def size(**sizes: int) -> tuple[int, int]:
            options = Parametrization(kind=kind, labels=self.labels, **{**known, **sizes})  # type: ignore[arg-type]
            made = options.specification(own, data.Normalization(half, half))
            return budget.stored_size(made, storage, beside, others)

        if self.budget is not None and self.budget_bytes is not None:
            raise InputError("give --budget or --budget-bytes, not both")
        in_bytes = self.budget is None
        if kind == "gaussian":
            check_at_least_one(self, "latents_per_class", "latent_size", "decoder_width")
        asked = self.budget_bytes if in_bytes else self.budget
        if asked is None or not 0 < asked < math.inf:
            raise InputError(f"a budget must be positive, not {asked}")
        each = math.prod(dataset.image_shape) * (self.budget or 0)
        if self.budget_bytes is not None:
            each = self.budget_bytes / dataset.num_classes
        limit = int(each * number)
        if kind != "gaussian":
            count = _COUNT[kind]
            if said[count] is not None:
                return {}
            return {count: budget.items(lambda n: size(**{count: n})[in_bytes], limit)}
        if known["decoder"] == "large":
            raise InputError("a budget does not choose the sizes of --decoder large: give them")
        longest = 64 if dataset.image_shape[0] > 16 else 16
        given = said["latent_size"]
        found = budget.gaussians(
            lambda n, z, k: size(latents_per_class=n, latent_size=z, decoder_width=k)[in_bytes],
            limit,
            latents=said["latents_per_class"],
            latent_sizes=(longest, longest // 2, longest // 4) if given is None else (given,),
            width=said["decoder_width"],
            multiple=8 if known["decoder"] == "small" else 16,
        )
        return dict(zip(("latents_per_class", "latent_size", "decoder_width"), found, strict=True))

    def specification(
        self,
        dataset: data.Dataset,
        normalization: data.Normalization,
        items: int | None = None,
        learned: str = "free",
    ) -> dict[str, Any]:
        """The specification for `synthetic.create` of a resolved parametrization.

        learned: the kind of labels that are learned.
        """
        kinds = {"learned": learned, "expert": "probabilities", "solved": "solved"}
        common = {
            "kind": self.kind,
            "image_shape": list(dataset.image_shape),
            "num_classes": dataset.num_classes,
            "label_kind": kinds.get(self.labels or "", "hard"),  # those of views are no items'
        }
        if self.kind == "pixels":
            if items is None:
                assert self.images_per_class is not None
                items = self.images_per_class * dataset.num_classes
            return {**common, "num_items": items, "start": self.start}
        if self.kind == "generated":
            assert self.images_per_class is not None
            number = self.images_per_class * dataset.num_classes
            own = {name: getattr(self, name) for name in ("start", "generator_width", "store")}
            return {**common, "num_items": number, **own}
        if self.kind == "spectral":
            return {**common, **{name: getattr(self, name) for name in _OWN["spectral"]}}
        channels = dataset.image_shape[2]
        shift, scale = [0.0] * channels, [1.0] * channels
        if self.output == "pixels" and normalization.span is not None:
            # Pixels give whitened images no range: one that few of their values are beyond.
            scale = [float(max(1, v)) for v in normalization.span]
        elif self.output == "pixels":
            shift = [float(v) for v in (0.5 - normalization.mean) / normalization.sd]
            scale = [float(v) for v in 0.5 / normalization.sd]
        chosen = {name: getattr(self, name) for name in _PLAIN}
        if self.start in _FITTED:
            chosen["start_steps"] = self.start_steps
        return {
            **common,
            "latents_per_class": self.latents_per_class,
            "latent_size": self.latent_size,
            "decoder": self.decoder,
            "width": self.decoder_width,
            "shift": shift,
            "scale": scale,
            **{name: value for name, value in chosen.items() if value != _PLAIN.get(name)},
        }


def of_other_kinds(kind: str) -> set[str]:
    """The options that are not for this kind."""
    return {name for names in _OWN.values() for name in names} - set(_OWN[kind])


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _defaults(kind: str, options: Parametrization, dataset: data.Dataset) -> dict[str, Any]:
    size = dataset.image_shape[0]
    if kind == "pixels":
        return {"images_per_class": 1, "start": "real"}
    if kind == "generated":
        width = 32 if size > 16 else 8
        known = {"images_per_class": 1, "start": "real"}
        return {**known, "generator_width": width, "store": "images"}
    if kind == "spectral":
        rank = -(-size // 2)
        return {"spectra_per_class": 2, "transformations": 4, "rank": rank, "start": "real"}
    decoder = options.decoder or "small"
    widths = {"small": 16 if size <= 16 else 64 if size <= 32 else 128, "medium": 512}
    width = options.decoder_width or widths.get(decoder, 1024)
    return {
        "latents_per_class": 5 if size <= 16 else 1,
        "latent_size": 4 * width if decoder == "large" else 8 if size <= 16 else 64,
        "decoder": decoder,
        "decoder_width": width,
        "output": "pixels",
        **_PLAIN,
        "start_steps": 500 if options.start in _FITTED else None,
    }
