"""The library: trained models from files, runs or the Hugging Face Hub.

    from adaconv import Generator

    G = Generator.from_pretrained("runs")      # a snapshot, a run, a folder of runs, or owner/name on the Hub
    images = G(G.latents([0, 1, 2]), psi=0.7)  # [3, C, H, W], about −1..1

    model = Stylizer.from_pretrained("pretrained/stylizer-small.safetensors")
    image = model.stylize("photo.jpg", "painting.jpg", strength=0.8)  # uint8 [3, H, W], as stylize.py makes it

and the layer itself for other networks: AdaConv2d, with KernelPredictor (`networks.adaconv`).

Everything but the Hub works without huggingface_hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import networks.generator
import networks.stylizer
from media.excerpt import Excerpt
from media.files import read_image
from media.images import preview_grid, save_png, to_float, to_uint8
from media.transcode import Transcoded
from models.card import SAMPLE_SHEET, facts_of_run, model_card
from models.classes import class_names, find_class
from models.hub import INSTALL, download_model, may_be_repository
from models.sampling import SeedsOf, class_centers, generate_batches, labels_in_turn, latents, one_hot
from models.snapshot import GENERATOR, STYLIZER, WEIGHTS, find_snapshot, load_generator, load_stylizer, save_model
from networks.adaconv import AdaConv2d, AdaConvKernels, KernelPredictor
from networks.generator import Noise
from styling.apply import FrameStylizer, Progress, Settings, check_size, min_side, stylize_image, stylize_masked
from styling.films import frame_stylizer, stylize_video
from styling.inputs import Picture, StyleInput, mask_in, mixed_style, pixels_of, style_of, style_taken_apart
from styling.styles import CombinedStyle
from torch_utils.errors import UserError, one_line, plural
from torch_utils.files import missing_message, write_file

if TYPE_CHECKING:
    from typing_extensions import Self

__version__ = "0.2.0"

SAMPLE_COUNT = 8  # images on the sheet beside a generator's card


class WithoutHub:
    """The methods of huggingface_hub's mixin, for an environment in which it is not installed."""

    def save_pretrained(self, save_directory: str | Path) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder)
        if not (folder / "README.md").exists():
            write_file(folder / "README.md", self.card().encode())

    def push_to_hub(self, repo_id: str, **_: Any) -> str:
        raise UserError(f"to push to {repo_id}, {INSTALL}")

    def _save_pretrained(self, save_directory: Path) -> None:
        raise NotImplementedError

    def card(self, **kwargs: str) -> str:
        raise NotImplementedError


HubMixin: Any
try:
    from huggingface_hub import ModelHubMixin as HubMixin
except ImportError:
    HubMixin = WithoutHub


class Pretrained(HubMixin):
    """Loading and saving with huggingface_hub's mixin, in the format of this project: one .safetensors file.

    The file contains the configuration, which is checked before the model is built (`models.snapshot.load_model`).
    config.json is written for the Hub only, and is never read.
    """

    kind: ClassVar[str]
    load: ClassVar[Callable[..., Any]]
    config: Any
    info: dict[str, Any]  # of the snapshot: kimg, the name of the data set, and what its run has recorded

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """The model of a snapshot, of a run or a folder of runs (the newest snapshot), or of a repository on the Hub.

        A generator can also be a file of StyleGAN2's networks (docs/stylegan2.md). The model is in eval mode and
        without gradients. All arguments but `device` are huggingface_hub's.

        Raises:
            UserError: if there is no such model, or if the file is damaged or of another kind.
        """
        name = str(pretrained_model_name_or_path)
        if os.path.exists(name):
            hint = "name another folder, or use the class of the other kind of model (Generator or Stylizer)"
            return cls._load(find_snapshot(name, cls.kind, hint), device)
        if not may_be_repository(name):
            raise UserError(
                missing_message(Path(name), "name a snapshot, a run, a folder of runs, or owner/name of the Hub")
            )
        return cls._from_pretrained(
            model_id=name,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            device=device,
        )

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: torch.device | str = "cpu", **hub: Any) -> Self:
        return cls._load(download_model(model_id, **hub), device)

    @classmethod
    def _load(cls, path: Path, device: torch.device | str) -> Self:
        model, info = cls.load(path, device, cls)
        model.info = {**facts_of_run(path), **info}
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        save_model(save_directory / WEIGHTS, self.kind, self, asdict(self.config), self.info)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **hub: Any) -> str:
        """Uploads the model with its card. `model_card_kwargs={"license": …}` states the licence of the weights."""
        return super().push_to_hub(repo_id, model_card_kwargs={"repo": repo_id, **(model_card_kwargs or {})}, **hub)

    def card(self, **kwargs: str) -> str:
        """The model card; `repo` and `license` as in `models.card.model_card`."""
        assert isinstance(self, (networks.generator.Generator, networks.stylizer.Stylizer))
        return model_card(self, self.info, WEIGHTS, **kwargs)

    def generate_model_card(self, **kwargs: str) -> Any:
        """The model card in the type that huggingface_hub's mixin asks for."""
        from huggingface_hub import ModelCard

        return ModelCard(self.card(**kwargs))


class Generator(Pretrained, networks.generator.Generator):
    """z [N, z_dim] → images [N, C, H, W], about −1..1, with the model's constant noise, as generate.py makes them."""

    kind = GENERATOR
    load = staticmethod(load_generator)

    def __init__(self, config: networks.generator.GeneratorConfig):
        super().__init__(config)
        self.info = {"kimg": 0.0}

    def latents(self, seeds: Sequence[int], of: SeedsOf = "adaconv") -> Tensor:
        """z [N, z_dim] of seeds, the same as in generate.py.

        With `of="stylegan2"` they are those of StyleGAN2-ADA-PyTorch and StyleGAN3, as with --seeds-of stylegan2.
        Raises ValueError for seeds below 0 and from 2⁶⁴ on, or from 2³² on for StyleGAN2's.
        """
        return latents(seeds, self.config.z_dim, of).to(self.w_avg.device)

    def forward(
        self,
        z: Tensor,
        c: Tensor | Sequence[Any] | int | str | None = None,
        psi: float | Sequence[float] | Tensor = 1.0,
        noise: Noise = "const",
        trunc_class: bool = False,
    ) -> Tensor:
        """Images of z.

        Args:
            z: [N, z_dim]
            c: classes [N] by number or name, one class for all, or floats [N, c_dim], which may mix classes; for a
                model whose labels are numbers, a label [c_dim] for all, or [N, c_dim].
            psi: truncation, one number for all layers, or a sequence or tensor [num_ws].
            noise: "const", "random", "none", or a tensor for each layer.
            trunc_class: whether truncation is towards the mean of each image's class, in place of the mean of all.

        Raises:
            ValueError: if z or psi is of another shape, or if the model has classes and c does not name one for each
                image, or has none and c does.
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise ValueError(f"z: expected [N, {self.config.z_dim}], as latents([0, 1]) makes it, got {list(z.shape)}")
        if not isinstance(psi, (int, float)):
            psi = torch.as_tensor(psi, dtype=torch.float32, device=self.w_avg.device)
            if psi.shape not in ((), (self.config.num_ws,)):
                raise ValueError(
                    f"psi: expected a number, or one for each of {self.config.num_ws} layers, got {psi.shape}"
                )
        c, z = self._classes(c, z.shape[0]), z.to(self.w_avg)
        if trunc_class and c is None:
            raise ValueError("trunc_class: expected False, as the model has no classes")
        center = class_centers(self, c) if trunc_class and c is not None else None
        return self.synthesis(self.ws(z, c, psi, center), noise)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; () if the model does not have them."""
        return class_names(self.info, self.config.c_dim)

    @property
    def label_ranges(self) -> tuple[tuple[float, float], ...]:
        """What each number of a label went from and to in training; () if the model has no label vectors."""
        vectors = self.mapping.labels
        return () if vectors is None else tuple(vectors.ranges())

    def _labels(self, c: Tensor | Sequence[Any] | float | None, n: int) -> Tensor:
        """Label vectors [n, c_dim] from one for all or one for each. Raises ValueError."""
        count = self.config.c_dim
        labels = torch.as_tensor([] if c is None else c, dtype=torch.float32, device=self.w_avg.device)
        if count == 1 and not labels.ndim:
            labels = labels[None]
        if labels.shape not in ((count,), (n, count)):
            raise ValueError(
                f"c: expected a label of {plural(count, 'number')}, or [{n}, {count}] for {plural(n, 'image')}, "
                f"got {'none' if c is None else list(labels.shape) if labels.ndim else c}"
            )
        return labels.expand(n, -1)

    def _classes(self, c: Tensor | Sequence[Any] | int | str | None, n: int) -> Tensor | None:
        count = self.config.c_dim
        if self.config.vector_labels:
            return self._labels(None if isinstance(c, str) else c, n)
        if not count:
            if c is not None:
                raise ValueError("c: expected None, as the model has no classes")
            return None
        if isinstance(c, str):
            c = find_class(c, count, self.class_names)
        elif isinstance(c, Sequence):
            c = [find_class(name, count, self.class_names) if isinstance(name, str) else name for name in c]
        expected = f"c: expected a class from 0 to {count - 1} for each of {plural(n, 'image')}, such as c=0"
        if c is None:
            raise ValueError(expected)
        c = torch.as_tensor(c, device=self.w_avg.device)
        if c.dtype == torch.bool:
            raise ValueError(f"{expected}; got {c.tolist()}")
        if c.is_floating_point() and c.shape == (n, count):
            return c.to(self.w_avg)
        if c.is_floating_point():
            raise ValueError(f"{expected}, or floats [{n}, {count}]; got floats {list(c.shape)}")
        if c.shape not in ((), (n,)):
            raise ValueError(f"{expected}, or one for all; got {list(c.shape)}")
        if not bool(((c >= 0) & (c < count)).all()):
            raise ValueError(f"{expected}; got {one_line(c.tolist())}")
        return one_hot(c.long().expand(n), count).to(self.w_avg)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        classes = labels_in_turn(self, range(SAMPLE_COUNT))
        images = torch.cat(list(generate_batches(self, range(SAMPLE_COUNT), SAMPLE_COUNT, classes)))
        save_png(preview_grid(images, SAMPLE_COUNT // 2), save_directory / SAMPLE_SHEET)


class Stylizer(Pretrained, networks.stylizer.Stylizer):
    """Contents in the styles of images: `stylize` and `stylize_video` give what stylize.py writes.

    `model(content, model.kernels(style))` is the network alone: images [N, 3, H, W] in −1..1, as they are.
    """

    kind = STYLIZER
    load = staticmethod(load_stylizer)

    def __init__(self, config: networks.stylizer.StylizerConfig):
        super().__init__(config)
        self.info = {"kimg": 0.0}

    def read_style(
        self,
        style: StyleInput | Sequence[StyleInput] | None = None,
        *,
        mix: Sequence[float] | None = None,
        structure_from: StyleInput | None = None,
        statistics_from: StyleInput | None = None,
        style_scale: float = 1.0,
    ) -> CombinedStyle:
        """A style that can be applied to any number of contents.

        Args:
            style: a path, an image of Pillow or a tensor: uint8 [3, H, W], or float [3, H, W] in −1..1. A path can also
                name a file that `stylize.py --save-style` wrote. Several, with `mix`, are mixed.
            mix: a weight for each style.
            structure_from: in place of `style`, with `statistics_from`: what the depthwise kernels are taken from.
            statistics_from: what the pointwise kernels and biases are taken from.
            style_scale: size of the strokes relative to the image, from 0.5; 2 doubles it.

        Raises:
            UserError: if a file cannot be read as a style.
            TypeError, ValueError: if an argument is of another kind, or does not go with the others.
        """
        if structure_from is not None and statistics_from is not None and style is None and mix is None:
            return style_taken_apart(self, structure_from, statistics_from, style_scale)
        if style is None or structure_from is not None or statistics_from is not None:
            raise ValueError("style: expected a style, or structure_from and statistics_from in its place")
        return mixed_style(self, style, mix, style_scale)

    def stylize(
        self,
        content: Picture,
        style: StyleInput | Sequence[StyleInput],
        *,
        mix: Sequence[float] | None = None,
        style_scale: float = 1.0,
        mask: Picture | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Tensor:
        """A content in a style, uint8 [3, H, W]: the pixels that stylize.py writes.

        Args:
            content: a path, an image of Pillow or a tensor: uint8 [3, H, W], or float [3, H, W] in −1..1.
            style: as in `read_style`, or what that gave.
            mask: of the content's size, in the same forms or float [1, H, W] in 0..1: the first of two styles applies
                where it is white, the second where it is black.
            progress: called with the number of tiles done and of all, for a content that is stylized in tiles.
            settings: those of `styling.apply.Settings`: strength, color, tile, precision, shifts, feather, max_side.

        Raises:
            UserError: if a file cannot be read, or the memory is too small.
            TypeError, ValueError: if an argument is of another kind, or does not go with the others.
        """
        look = Settings(**settings)
        pixels = pixels_of(content, "content", min_side(self))
        check_size(self, "the content", pixels.shape[1], pixels.shape[2], look.max_side)
        if mask is None:
            return stylize_image(self, pixels, mixed_style(self, style, mix, style_scale), look, progress)
        inside, outside = self._masked_styles(style, mix, style_scale)
        shares = mask_in(mask, (pixels.shape[1], pixels.shape[2]))
        return stylize_masked(self, pixels, inside, outside, shares, look, progress)

    def stylize_video(
        self,
        source: str | os.PathLike,
        out: str | os.PathLike,
        style: StyleInput | Sequence[StyleInput],
        *,
        mix: Sequence[float] | None = None,
        style_scale: float = 1.0,
        mask: Picture | None = None,
        start: float = 0.0,
        length: float | None = None,
        batch: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Transcoded:
        """Writes a video in a style, with its sound and its times, as stylize.py does, and counts what was written.

        Args:
            source: a video, or an animated GIF, WebP or PNG.
            out: an .mp4, .m4v, .mov or .mkv, which is there when all of it is written.
            style: as in `read_style`, or what that gave.
            mask: as in `stylize`, of any size; it is resized to the frames.
            start: the second of the source at which what is written begins.
            length: how many seconds of it are written; None for all.
            batch: number of frames that are stylized together; None to choose by their size.
            progress: called with the number of frames done and of all, None if it is not known: after each batch,
                and between packets of sound.
            settings: those of `styling.apply.Settings`, also `smooth`.

        Raises:
            UserError: if a file cannot be read or written, or the memory is too small.
            TypeError, ValueError: if an argument is of another kind, or does not go with the others.
        """
        look, excerpt = Settings(**settings), Excerpt(start, length)
        if mask is None:
            frames = frame_stylizer(self, [mixed_style(self, style, mix, style_scale)], look)
        else:
            frames = frame_stylizer(self, self._masked_styles(style, mix, style_scale), look, mask_in(mask))
        return stylize_video(source, out, frames, batch, progress, excerpt)

    def _masked_styles(self, style: Any, mix: Sequence[float] | None, scale: float) -> list[CombinedStyle]:
        """The styles inside and outside of a mask. Raises ValueError if there are not two of them."""
        if not isinstance(style, (list, tuple)) or len(style) != 2 or mix is not None:
            raise ValueError("mask: expected two styles, the first for inside and the second for outside, without mix")
        return [style_of(self, one, scale) for one in style]


__all__ = [
    "AdaConv2d",
    "AdaConvKernels",
    "FrameStylizer",
    "Generator",
    "KernelPredictor",
    "Settings",
    "Stylizer",
    "UserError",
    "__version__",
    "read_image",
    "save_png",
    "to_float",
    "to_uint8",
]
