"""Reads distilled images as other projects publish them, without running what a file names."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3jax.data.cache import UNREADABLE
from d3jax.types import InputError

HEADER = "header.json"  # what d3jax writes beside what it exports
_TENSORS, _IMAGES = (".pt", ".pth"), (".png", ".jpg", ".jpeg")
_NPZ = (("images", "labels"), ("image", "label"), ("x_proto", "y_proto"))  # KIP, FRePo, FRePo


class Published(NamedTuple):
    """Distilled images as their files have them."""

    images: np.ndarray  # f32[N, H, W, C], normalized; or pixels u8[N, H, W, C]
    targets: (
        np.ndarray | None
    )  # classes i64[N], or f32[N, K]; None: as many of each class, in order
    layout: str  # mtt, torch (DD-Ranking), dc, kip, frepo, npz or folder
    files: tuple[Path, ...]
    learning_rate: float | None = None
    class_names: tuple[str, ...] | None = None  # of folders that are not numbered
    about: dict[str, Any] = {}  # noqa: RUF012  # header.json beside them, if d3jax wrote them

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)


def is_published(path: Path) -> bool:
    """Whether `read` is for this path: tensors, an .npz, or a folder of either or of classes."""
    if path.is_dir():
        return _inside(path) is not None or bool(_classes(path))
    return path.suffix in (*_TENSORS, ".npz")


def read(path: Path, labels: Path | None = None) -> Published:
    """Distilled images and labels in the layouts of the field.

    A folder with images_best.pt, labels_best.pt (MTT), and lr_best.pt (DATM); one with images.pt,
    labels.pt, lr.pt (DD-Ranking); res_METHOD_DATASET_NETWORK_Nipc.pt (DC, DSA, DM: the last of its
    repetitions); an .npz with images and labels (KIP) or image and label (FRePo); or a folder of
    folders of PNG or JPEG files, one for each class (SRe2L, RDED), with labels.npy for soft labels.

    labels: the labels' file, where it is not beside the images under its usual name.

    Raises:
      InputError: no such layout, arrays that are none of images and labels, or a file that cannot
        be read without running code.
    """
    if not path.exists():
        raise InputError(f"there is nothing at {path}")
    is_pair = path.suffix in _TENSORS and path.name.startswith("images")
    if labels is not None and not path.is_dir() and not is_pair:
        raise InputError(f"the labels of {path} are in it: leave out --labels")
    if path.is_dir():
        inside = _inside(path)
        if labels is not None and inside is None:
            raise InputError(f"the labels of {path} are its folders', or labels.npy in it")
        found = _folder(path) if inside is None else read(inside, labels)
    elif path.suffix == ".npz":
        found = _npz(path)
    elif path.suffix in _TENSORS:
        found = _pair(path, labels) if is_pair else _repetitions(path)
    else:
        raise InputError(f"{path} is none of .pt, .npz or a folder of images")
    about = (path if path.is_dir() else path.parent) / HEADER
    if about.is_file():
        found = found._replace(about=_header(about))
    return _checked(found, path)


def _inside(folder: Path) -> Path | None:
    """The file of images in a folder."""
    names = ("images_best.pt", "images.pt", "res_*.pt", "distilled.npz")
    return next((found for name in names for found in sorted(folder.glob(name))), None)


def _pair(path: Path, labels: Path | None) -> Published:
    """images*.pt, and labels and learning rate under the same name."""
    images = _array(tensors(path), f"the tensor in {path}")
    rest = path.name.removeprefix("images").removeprefix("_zca")
    own = path.with_name(f"labels{rest}") if labels is None else labels
    rate = path.with_name(f"lr{rest}")
    files, targets, learned = [path], None, None
    if own.is_file():
        files.append(own)
        targets = _array(tensors(own), f"the labels in {own}")
    elif labels is not None:
        raise InputError(f"there are no labels at {labels}")
    if rate.is_file():
        files.append(rate)
        values = _array(tensors(rate), f"the learning rate in {rate}")
        if values.size != 1:
            raise InputError(f"{rate} holds {values.size} numbers, not one learning rate")
        learned = float(values.reshape(()))
    layout = "torch" if path.name == "images.pt" else "mtt"
    return Published(_last_channels(images, path), targets, layout, tuple(files), learned)


def _repetitions(path: Path) -> Published:
    """A dictionary whose `data` is a list of [images, labels], of which the last counts."""
    found = tensors(path)
    data = found.get("data") if isinstance(found, Mapping) else found
    last = data[-1] if isinstance(data, Sequence) and data else None
    if not isinstance(last, Sequence) or len(last) != 2:
        raise InputError(
            f"{path} holds no list `data` of images and labels, as DC, DSA and DM write it; "
            f"tensors of images alone are named images.pt or images_best.pt"
        )
    images, targets = (_array(x, f"what is in {path}") for x in last)
    return Published(_last_channels(images, path), targets, "dc", (path,))


def _npz(path: Path) -> Published:
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it is a single array, not an npz file")
            pair = next((pair for pair in _NPZ if set(pair) <= set(file.files)), None)
            if pair is None:
                raise InputError(
                    f"{path} has {', '.join(file.files)}; distilled images are named images and "
                    f"labels (KIP) or image and label (FRePo)"
                )
            images, targets = (file[name] for name in pair)
            if images.dtype.kind in "iub" and images.dtype != np.uint8:
                raise ValueError(f"its images are {images.dtype}; pixels are uint8")
            names = file["class_names"].tolist() if "class_names" in file.files else None
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    layout = "npz" if images.dtype == np.uint8 else {"images": "kip"}.get(pair[0], "frepo")
    named = None if names is None else tuple(map(str, names))
    return Published(images, targets, layout, (path,), class_names=named)


def _folder(path: Path) -> Published:
    from d3jax.data.decoding import decode_all  # needs Pillow

    classes = _classes(path)
    if not classes:
        raise InputError(
            f"{path} holds neither images_best.pt, images.pt nor folders of PNG or JPEG images"
        )
    names = [folder.name for folder in classes]
    listed = [sorted(f for f in folder.iterdir() if f.suffix.lower() in _IMAGES)
              for folder in classes]  # fmt: skip
    files = [file for each in listed for file in each]
    images, _, _ = decode_all([str(file) for file in files], files)
    numbered = [re.fullmatch(r"(?:new)?(\d+)", name) for name in names]
    numbers = [int(match[1]) for match in numbered if match]
    named = None if len(numbers) == len(names) else tuple(names)
    numbers = range(len(names)) if named else numbers
    targets = np.repeat(np.asarray(numbers, np.int64), [len(each) for each in listed])
    soft = path / "labels.npy"
    if soft.is_file():
        try:
            targets = np.load(soft, allow_pickle=False)
        except UNREADABLE as error:
            raise InputError(f"{soft} cannot be read: {error}") from None
        files.append(soft)
    return Published(images, targets, "folder", tuple(files), class_names=named)


def _classes(path: Path) -> list[Path]:
    """The folders in it that hold images."""
    return [
        folder
        for folder in sorted(path.iterdir())
        if folder.is_dir() and any(file.suffix.lower() in _IMAGES for file in folder.iterdir())
    ]


def tensors(path: Path) -> Any:
    """What `torch.load` reads of a file that may hold tensors and numbers, and nothing else.

    Raises:
      InputError: it holds other things, which would mean running code, or is damaged.
    """
    import torch  # extra `torch`

    # Numbers of NumPy are harmless, and DC's files hold accuracies as such.
    multiarray = np._core.multiarray  # pyright: ignore[reportAttributeAccessIssue]
    scalar = multiarray.scalar
    numbers = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    named = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*named, np.dtype, *numbers]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "damaged")
        raise InputError(
            f"{path} cannot be read as tensors and numbers alone; what else it names would run as "
            f"code ({type(error).__name__}: {reason[:120]})"
        ) from None


def _array(value: Any, what: str) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        return value.cpu().numpy()
    if isinstance(value, int | float):
        return np.asarray(value)
    raise InputError(f"{what} must be a tensor, not {type(value).__name__}")


def _last_channels(images: np.ndarray, path: Path) -> np.ndarray:
    """Images [N, C, H, W] as [N, H, W, C]."""
    if images.ndim != 4:
        raise InputError(f"the images in {path} have shape {list(images.shape)}, not [N, C, H, W]")
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _checked(found: Published, path: Path) -> Published:
    images, targets = found.images, found.targets
    for array in (images, targets):
        if array is not None and array.dtype.kind not in "iufb":
            raise InputError(f"{path} holds an array of {array.dtype}, not of numbers")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise InputError(
            f"{path} holds images of shape {list(images.shape)}, not [N, H, W, 1 or 3]"
        )
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise InputError(f"{path} holds images that are not finite")
    if targets is None:
        return found._replace(images=images)
    whole = targets.ndim == 1 and (targets == np.rint(targets)).all()
    if (not whole and targets.ndim != 2) or len(targets) != len(images):
        raise InputError(
            f"{path} has {len(images)} images and labels of shape {list(targets.shape)}; they must "
            f"be a class for each, or a row for each"
        )
    targets = targets.astype(np.int64 if targets.ndim == 1 else np.float32)
    if not np.isfinite(targets).all():
        raise InputError(f"{path} holds labels that are not finite")
    return found._replace(images=images, targets=targets)


def _header(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
        json.dumps(about, allow_nan=False)  # Python reads NaN, which JSON has not
    except (ValueError, OSError):
        about = None
    return about if isinstance(about, dict) else {}
