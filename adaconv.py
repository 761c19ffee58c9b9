"""The library: trained models from files, runs or the Hugging Face Hub, and back.

    from adaconv import Generator

    G = Generator.from_pretrained("runs")          # a snapshot, a run, a folder of runs, or owner/name on the Hub
    images = G(G.latents([0, 1, 2]), psi=0.7)      # [3, C, H, W], −1..1

Without huggingface_hub, everything but the Hub works.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

import networks.generator
import networks.stylizer
from media.images import grid, save_png, to_float, to_uint8
from models.card import SAMPLES, facts_of_run, model_card
from models.sampling import generate_batches, latents, one_hot
from models.snapshot import GENERATOR, STYLIZER, WEIGHTS, find_snapshot, load_generator, load_stylizer, save_model
from networks.generator import Noise
from torch_utils.errors import UserError, one_line

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    from huggingface_hub import ModelHubMixin
except ImportError:

    class ModelHubMixin:
        """What of the mixin needs no Hub."""

        def save_pretrained(self, save_directory: str | Path) -> None:
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            self._save_pretrained(folder)
            if not (folder / "README.md").exists():
                (folder / "README.md").write_text(self.card(), encoding="utf-8")

        def push_to_hub(self, repo_id: str, **_: Any) -> str:
            raise UserError(f"to push to {repo_id}, {INSTALL}")


INSTALL = "install huggingface_hub with: pip install huggingface_hub"
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)  # of the Hub: name, or owner/name
SAMPLE_COUNT = 8  # of images beside a generator's card


class Pretrained(ModelHubMixin):
    """Loading and saving by huggingface_hub's mixin, in this project's own format: one .safetensors file.

    The construction is in the file and is checked before anything is built (`models.snapshot.load_model`);
    config.json is written for the Hub's own use and never read.
    """

    kind: ClassVar[str]
    load: ClassVar[Callable[..., Any]]
    info: dict[str, Any]  # of the snapshot: kimg, the data's name, and what is known of the run

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
        """The model of a snapshot, of a run or folder of runs (the newest), or of a repository on the Hub.

        Or, of a generator, StyleGAN2's network pickle (docs/stylegan2.md). In eval mode and not to be trained.
        All but `device` is the Hub's.

        Raises:
            UserError: where there is no such model, or none that can be trusted.
        """
        model_id = str(pretrained_model_name_or_path)
        if Path(model_id).exists():
            return cls._loaded(find_snapshot(model_id, cls.kind), device)
        if REPOSITORY.fullmatch(model_id) is None or model_id.endswith((".safetensors", ".pkl")):
            raise UserError(
                f"{model_id} does not exist; name a snapshot, a run, or a repository on the Hub: owner/name"
            )
        return cls._from_pretrained(
            model_id=model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            device=device,
        )

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: torch.device | str = "cpu", **hub: Any) -> Self:
        try:
            import huggingface_hub
            from huggingface_hub.errors import EntryNotFoundError
        except ImportError:
            raise UserError(f"there is no {model_id} here; to load it from the Hub, {INSTALL}") from None
        try:
            path = huggingface_hub.hf_hub_download(repo_id=model_id, filename=WEIGHTS, **hub)
        except (OSError, ValueError, EntryNotFoundError) as error:
            reason = one_line(error, 200)
            raise UserError(f"there is no {model_id} here, and the Hub gives no {WEIGHTS} of it: {reason}") from None
        return cls._loaded(Path(path), device)

    @classmethod
    def _loaded(cls, path: Path, device: torch.device | str) -> Self:
        model, info = cls.load(path, device, cls)
        model.info = {**facts_of_run(path), **info}
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(save_directory / WEIGHTS, self.kind, self, asdict(self.config), self.info)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **hub: Any) -> str:
        """Uploads the model with its card; `model_card_kwargs={"license": …}` names the licence of the weights."""
        return super().push_to_hub(repo_id, model_card_kwargs={"repo": repo_id, **(model_card_kwargs or {})}, **hub)

    def card(self, **kwargs: str) -> str:
        """The model card; `repo` and `license` as in `models.card.model_card`."""
        return model_card(self, self.info, WEIGHTS, **kwargs)

    def generate_model_card(self, **kwargs: str) -> Any:
        from huggingface_hub import ModelCard

        return ModelCard(self.card(**kwargs))


class Generator(Pretrained, networks.generator.Generator):
    """z [N, z_dim] → images [N, C, H, W], about −1..1, as generate.py makes them: with the model's fixed noise."""

    kind = GENERATOR
    load = staticmethod(load_generator)

    def __init__(self, config: networks.generator.GeneratorConfig):
        super().__init__(config)
        self.info = {"kimg": 0.0}

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """z [N, z_dim] of seeds: the same as in generate.py."""
        return latents(seeds, self.config.z_dim).to(self.w_avg.device)

    def forward(
        self,
        z: Tensor,
        c: Tensor | Sequence[int] | int | None = None,
        psi: float | Tensor = 1.0,
        noise: Noise = "const",
    ) -> Tensor:
        """c: class numbers [N], one for all, or c [N, c_dim] of floats, also between classes.

        psi: truncation, one for all layers or [num_ws].

        Raises:
            ValueError: where there are classes and c is none of them.
        """
        return super().forward(z, self._classes(c, z.shape[0]), psi, noise)

    def _classes(self, c: Tensor | Sequence[int] | int | None, n: int) -> Tensor | None:
        count = self.config.c_dim
        if c is None and not count:
            return None
        c = torch.as_tensor(-1 if c is None else c, device=self.w_avg.device)
        if c.is_floating_point() and c.shape == (n, count):
            return c
        if c.is_floating_point() or c.shape not in ((), (n,)) or not bool(((c >= 0) & (c < count)).all()):
            what = f"a class from 0 to {count - 1} for each of {n}" if count else "None, as the model has no classes"
            raise ValueError(f"c: expected {what}")
        return one_hot(c.expand(n), count)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        classes = torch.arange(SAMPLE_COUNT) % max(self.config.c_dim, 1)
        images = torch.cat(list(generate_batches(self, range(SAMPLE_COUNT), SAMPLE_COUNT, classes)))
        save_png(grid(images, SAMPLE_COUNT // 2), save_directory / SAMPLES)


class Stylizer(Pretrained, networks.stylizer.Stylizer):
    """`model(content, model.kernels(style))`: images [N, 3, H, W] in −1..1, contents rebuilt in those styles."""

    kind = STYLIZER
    load = staticmethod(load_stylizer)

    def __init__(self, config: networks.stylizer.StylizerConfig):
        super().__init__(config)
        self.info = {"kimg": 0.0}


__all__ = ["Generator", "Stylizer", "UserError", "save_png", "to_float", "to_uint8"]
