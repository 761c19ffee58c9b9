"""Mean and covariance of real images' features in a file, in place of the images: the `.npz` of pytorch-fid and ADM.

They hold `mu` [D] and `sigma` [D, D]. pytorch-fid writes such files, and the evaluations of Dhariwal and Nichol
("Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021) come with some, which hold more. By what network, and of
images that were resized how, these do not say; files that are written here do.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.detectors import Layer
from torch_utils.arrays import Arrays, open_arrays
from torch_utils.download import file_sha256
from torch_utils.errors import UserError, one_line
from torch_utils.files import missing_message, write_file

SUFFIX = ".npz"
MAX_DIMENSIONS = 4096  # of features: those of VGG-16
SYMMETRY = 1e-4  # by how much of its largest number a covariance may differ from its transpose, as in float32


@dataclass(frozen=True)
class Reference:
    """The moments of real images' features: `mean` [D] and `covariance` [D, D], in float64."""

    path: Path
    moments: dict[str, Tensor]
    sha256: str  # of the file
    layer: str = ""  # of a detector, and the SHA-256 of its weights, where the file says so: its own text
    weights: str = ""
    images: int = 0  # how many they are of, where the file says so

    @property
    def fingerprint(self) -> str:
        """A hash of the file, 16 hex digits."""
        return self.sha256[:16]

    def check(self, name: str, layer: Layer, dimensions: int, weights: str) -> None:
        """Raises UserError where a metric of that name compares other features.

        A detector is known by its `weights`, the SHA-256 of its file: a path can be written in several ways.
        """
        found, own_name = len(self.moments["mean"]), self.layer.rpartition("/")[2]
        same = str(layer) == self.layer or (layer.name == own_name and weights == self.weights)
        if self.layer and not same:
            raise UserError(
                f"{name} compares features of {layer}, {self.path} is of {one_line(self.layer)}; name a file that was "
                f"made for {name}, or the images"
            )
        if found != dimensions:
            raise UserError(
                f"{name} compares {dimensions:,} features of {layer}, {self.path} is of {found:,}; name a file that "
                f"was made for {name}, or the images"
            )
        if self.weights not in ("", weights):
            raise UserError(
                f"{self.path} was made with other weights of {layer.detector.name} (SHA-256 {self.weights[:8]}…, not "
                f"{weights[:8]}…); make it anew with --save-stats"
            )


def is_reference(path: str | os.PathLike | None) -> bool:
    """Whether --data names such a file."""
    return path is not None and str(path).lower().endswith(SUFFIX) and not Path(path).is_dir()


def read_reference(path: str | os.PathLike) -> Reference:
    """The statistics in a file. Raises UserError."""
    path = Path(path)
    try:
        with open_arrays(path) as arrays:
            mean, covariance = _numbers(arrays, "mu", (None,)), _numbers(arrays, "sigma", (None, None))
            if covariance.shape != (len(mean), len(mean)):
                raise ValueError(f"mu has {len(mean)} numbers, and sigma {list(covariance.shape)}")
            if not (covariance - covariance.T).abs().max() <= SYMMETRY * covariance.abs().max():
                raise ValueError("sigma is not symmetric, as a covariance is")
            own: dict[str, Any] = {}
            if "layer" in arrays:
                own = {name: arrays.text(name) for name in ("layer", "weights")}
                own["images"] = int(arrays.array("images", ()))
        return Reference(path, {"mean": mean, "covariance": covariance}, file_sha256(path), **own)
    except FileNotFoundError:
        raise UserError(missing_message(path, "name a file of statistics, or a folder or ZIP of images")) from None
    except Exception as error:  # NumPy and zipfile raise nearly any exception for a damaged file
        reason = one_line(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as statistics of images, mu and sigma ({reason}); name another file, or a folder "
            "or ZIP of images"
        ) from None


def write_reference(
    path: str | os.PathLike, moments: dict[str, Tensor], layer: Layer, weights: str, images: int
) -> None:
    """Writes the moments of so many images' features as `mu` and `sigma`, atomically. Raises DiskFull."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=moments["mean"].numpy(),
        sigma=moments["covariance"].numpy(),
        layer=np.array(str(layer)),
        weights=np.array(weights),
        images=np.array(images),
    )
    write_file(path, buffer.getbuffer())


def _numbers(arrays: Arrays, name: str, shape: tuple[None, ...]) -> Tensor:
    """An array of finite numbers in float64. Raises ValueError."""
    array = arrays.array(name, shape, most=8 * MAX_DIMENSIONS ** len(shape))
    if array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} does not hold finite numbers")
    return torch.from_numpy(array.astype(np.float64, copy=False))
