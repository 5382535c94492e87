"""How pixels are normalized, and whitened."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from d3jax.data.given import as_pixels
from d3jax.types import InputError

WHITENINGS = ("mtt", "frepo", "kip")
_BLOCK = 2048  # images converted to float at a time
_SOME = 1000  # of which `span` is computed


class Normalization(NamedTuple):
    """Pixels in [0, 1], less the mean, over the standard deviation; then ZCA-whitened, if at all.

    ZCA: (x - zca_mean) @ zca for a normalized flattened image x f32[D], D = H * W * C.
    """

    mean: np.ndarray  # f32[C]
    sd: np.ndarray  # f32[C]
    zca: np.ndarray | None = None  # f32[D, D], symmetric
    zca_mean: np.ndarray | None = None  # f32[D]
    unit: bool = False  # before ZCA each image is less its own mean, and of length 1 (KIP)
    span: np.ndarray | None = None  # f32[C], with ZCA: see `whitened`

    @classmethod
    def of(cls, images: np.ndarray, zca: bool = False, eps: float = 0.1) -> "Normalization":
        """The normalization of training images [N, H, W, C]: mean and sd of each channel.

        images: as `as_pixels` takes them.

        zca: whiten as well, by U diag(1 / sqrt(S + eps)) U^T of the covariance U diag(S) U^T
          (over N - 1) of normalized images, as kornia does for MTT (Cazenavette et al. 2022).
        A constant channel gets sd 1. Raises InputError for no images, fewer than 2 with ZCA, or
        images all of one colour.
        """
        if len(images) < (2 if zca else 1):
            raise InputError(f"{len(images)} images are too few to normalize by")
        images = as_pixels(images)
        plain = cls.of_histogram(histogram(images))
        return plain.whitened(images, eps) if zca else plain

    @classmethod
    def of_header(cls, stored: Mapping[str, Any]) -> "Normalization":
        """Mean and sd as an artifact's header has them; its ZCA, if any, is computed anew."""
        return cls(np.asarray(stored["mean"], np.float32), np.asarray(stored["sd"], np.float32))

    @classmethod
    def of_histogram(cls, counts: np.ndarray) -> "Normalization":
        """The normalization of images whose channels have these counts i64[C, 256] of values.

        Raises:
          InputError: all pixels are alike.
        """
        if ((counts > 0).sum(1) == 1).all():
            raise InputError(
                "all pixels of the training images are alike: there is nothing to learn from them"
            )
        levels = np.arange(256) / 255
        mean = counts @ levels / counts.sum(1)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
        sd = np.where((counts > 0).sum(1) > 1, np.sqrt(variance), 1)
        return cls(mean.astype(np.float32), sd.astype(np.float32))

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Normalized f32[N, H, W, C] of [N, H, W, C], as `as_pixels` takes them.

        Equal to `Real.gather` without ZCA.
        """
        images = as_pixels(images)
        normalized = np.empty(images.shape, np.float32)
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK].astype(np.float32) / np.float32(255)
            normalized[start : start + _BLOCK] = self.of_levels(block)
        return normalized

    def of_levels(self, levels: np.ndarray) -> np.ndarray:
        """Normalized f32[N, H, W, C] of pixels in [0, 1], or beyond: what `levels` undoes."""
        flat = ((levels - self.mean) / self.sd).reshape(len(levels), -1)
        if self.unit:
            flat = flat - flat.mean(1, keepdims=True)
            flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        if self.zca is not None and self.zca_mean is not None:
            flat = (flat - self.zca_mean) @ self.zca
        return flat.reshape(levels.shape)

    def levels(self, images: np.ndarray) -> np.ndarray:
        """Pixels f32[N, H, W, C], in [0, 1] where pixels can be so, of normalized images.

        Raises:
          InputError: each image was divided by its length, which is not known any more.
        """
        if self.unit:
            raise InputError("images of unit length (KIP's) have no pixels to return to")
        pixels = np.asarray(images, np.float32)
        if self.zca is not None and self.zca_mean is not None:
            flat = pixels.reshape(len(pixels), -1)
            # Solved for, not stored: the inverse would be as large as the matrix.
            pixels = np.linalg.solve(self.zca, flat.T).T + self.zca_mean
            pixels = pixels.reshape(images.shape)
        return pixels * self.sd + self.mean

    def invert(self, images: np.ndarray) -> np.ndarray:
        """Pictures u8[N, H, W, C] of normalized f[N, H, W, C], clipped to what pixels can be."""
        pixels = np.nan_to_num(self.levels(images) * 255)
        return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)

    def whitened(self, images: np.ndarray, eps: float = 0.1, kind: str = "mtt") -> "Normalization":
        """This normalization and then ZCA, computed from training images u8[N, H, W, C].

        kind: `mtt`, see `of`; `frepo` (Zhou et al. 2022): the covariance over N, and `eps` times
          its mean eigenvalue added; `kip` (Nguyen et al. 2021): that, of images less their own mean
          and of length 1, and no mean image is taken off.

        `span` is what a thousandth of the whitened values of the first 1000 images are beyond, of
        each channel.
        """
        number, size = len(images), int(np.prod(images.shape[1:]))
        plain = self._replace(unit=kind == "kip")
        zca_mean = np.zeros(size)
        for start in range(0, number if kind != "kip" else 0, _BLOCK):
            block = plain.apply(images[start : start + _BLOCK]).reshape(-1, size)
            zca_mean += block.sum(0, dtype=np.float64)
        zca_mean = (zca_mean / number).astype(np.float32)
        covariance = np.zeros((size, size))
        for start in range(0, number, _BLOCK):
            # A block's product in float32 is fast; the sum of blocks needs float64.
            block = plain.apply(images[start : start + _BLOCK]).reshape(-1, size) - zca_mean
            covariance += block.T @ block
        covariance /= number - 1 if kind == "mtt" else number
        added = eps if kind == "mtt" else eps * np.trace(covariance) / size
        values, vectors = np.linalg.eigh(covariance)
        # Rounding can leave eigenvalues of a singular covariance slightly negative.
        scale = 1 / np.sqrt(np.maximum(values, 0) + added)
        zca = ((vectors * scale) @ vectors.T).astype(np.float32)
        found = plain._replace(zca=zca, zca_mean=zca_mean)
        some = np.abs(found.apply(images[:_SOME]))
        return found._replace(span=np.quantile(some, 0.999, axis=(0, 1, 2)).astype(np.float32))


def histogram(images: np.ndarray) -> np.ndarray:
    """Counts i64[C, 256] of the values of each channel of u8[N, H, W, C]: they add up exactly."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        for channel in range(len(counts)):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    return counts
