"""What there is to be done: which content in which look goes into which file; and doing it, one after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from media import files, video
from media.files import is_video, list_images, output_paths, read_image, write_image
from networks.stylizer import Stylizer
from styling.apply import Progress, Settings, min_side, stylize_image, stylize_masked, stylize_video
from styling.styles import Look
from torch_utils.errors import UserError
from torch_utils.files import missing
from torch_utils.memory import out_of_memory


@dataclass(frozen=True)
class Job:
    """One result: a content, the number of the look that it gets, and its file."""

    content: Path
    video: bool
    look: int
    out: Path


def find_contents(path: str | os.PathLike) -> list[Path]:
    """The file itself, or the images and videos of a folder. Raises UserError where there are none."""
    path = Path(path)
    if os.path.isdir(path):  # False for names that are too long, where Path raises
        return list_images(path, videos=True)
    if not os.path.exists(path):
        raise UserError(missing(path, "name an image, a video or a folder of them with --content"))
    return [path]


def means_folder(out: str) -> bool:
    """Whether a path names a folder rather than an image or a video: one that is there, or by its name."""
    return os.path.isdir(out) or out.endswith(("/", os.sep)) or not Path(out).suffix


def plan_file(content: Path, out: Path) -> Job:
    """The job of one content in one look. Raises UserError where `out` has an extension that cannot be written."""
    moves = is_video(content)
    (video if moves else files).check_written(out)
    return Job(content, moves, 0, out)


def plan_folder(contents: Sequence[Path], looks: Sequence[Sequence[Path]], folder: Path, suffix: str) -> list[Job]:
    """Every content in every look, named after both; a look is known by the files of its styles.

    Images get the extension `suffix`; videos keep their own where such a file can be written, else it is .mp4.
    Raises UserError where two results would have one name.
    """
    moves = {path: is_video(path) for path in contents}
    suffixes = dict.fromkeys(contents, suffix)
    for path in contents:
        if moves[path]:
            suffixes[path] = path.suffix.lower() if path.suffix.lower() in video.WRITTEN else ".mp4"
    jobs: dict[Path, Job] = {}
    for i, look in enumerate(looks):
        outs = {}
        for each in set(suffixes.values()):
            some = [path for path in contents if suffixes[path] == each]
            outs.update(zip(some, output_paths(some, look, folder, each), strict=True))
        for path, out in outs.items():
            if out in jobs:
                raise UserError(
                    f"two results would be written to {out}; rename a style or a content, or stylize them one by one"
                )
            jobs[out] = Job(path, moves[path], i, out)
    order = {path: i for i, path in enumerate(contents)}
    return sorted(jobs.values(), key=lambda job: (order[job.content], job.look))


def check_kept(outs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises UserError where a result would replace what it is made from."""
    sources = {path.resolve() for path in inputs}
    for out in outs:
        if out.resolve() in sources:
            raise UserError(f"{out} is one of the files to be read and would be replaced; name another place for it")


def work(
    jobs: Sequence[Job],
    model: Stylizer,
    looks: Sequence[Look],
    settings: Settings,
    *,
    mask: Tensor | None = None,
    batch: int | None = None,
    go_on: bool = False,
) -> dict[Job, str]:
    """Does the jobs. With `mask` [1, H, W], the first look applies inside of it and the second one outside.

    Raises UserError for the first one that cannot be done; or with `go_on` does the others, and returns those that
    were not with the reason: one look of a content may fail where another is fine. Raises DiskFull.
    """
    bad: dict[Job, str] = {}
    content: tuple[Path, Tensor | UserError] | None = None  # the last image, or why it is none: its next look is next
    with tqdm(total=len(jobs), unit="file", disable=len(jobs) == 1 or not sys.stderr.isatty()) as total:
        for job in jobs:
            total.set_postfix_str(job.content.name)
            try:
                with bar("frame" if job.video else "tile") as progress:
                    if job.video:
                        do_video(job, model, looks[job.look], settings, batch, progress)
                    else:
                        if content is None or content[0] != job.content:
                            content = job.content, read(job.content, model)
                        if isinstance(content[1], UserError):
                            raise content[1]
                        chosen = looks if mask is not None else [looks[job.look]]
                        write_image(paint(model, content[1], chosen, mask, settings, progress), job.out)
            except (UserError, RuntimeError, MemoryError) as error:
                if not isinstance(error, UserError):
                    if not out_of_memory(error):
                        raise
                    error = UserError(f"no memory for {job.content}; try --tile 256, --batch 1 or --device cpu")
                if not go_on:
                    raise error from None
                bad[job] = error.message
            total.update()
    return bad


def read(path: Path, model: Stylizer) -> Tensor | UserError:
    """The image of a content; or what is wrong with it, for all of its looks."""
    try:
        return read_image(path, min_side=min_side(model))
    except UserError as error:
        return error


def paint(
    model: Stylizer,
    content: Tensor,
    looks: Sequence[Look],
    mask: Tensor | None,
    settings: Settings,
    progress: Progress,
) -> Tensor:
    if mask is None:
        return stylize_image(model, content, looks[0], settings, progress)
    inside, outside = looks
    return stylize_masked(model, content, inside, outside, mask, settings, progress)


def do_video(job: Job, model: Stylizer, look: Look, settings: Settings, batch: int | None, progress: Progress) -> None:
    done = stylize_video(job.content, job.out, model, look, settings, batch, progress)
    if done.damaged:
        tqdm.write(f"{job.content}: {done.damaged} damaged parts were left out", file=sys.stderr)
    if done.sound_encoded:
        tqdm.write(f"{job.out}: its kind of file does not take the sound as it is, which is now AAC", file=sys.stderr)


@contextmanager
def bar(unit: str) -> Iterator[Progress]:
    """What moves a bar on stderr, where that is a terminal; there is none before the first move."""
    shown: tqdm | None = None

    def progress(done: int, of: int | None) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(total=of, unit=unit, leave=False, disable=not sys.stderr.isatty())
        shown.total = of
        shown.update(done - shown.n)

    try:
        yield progress
    finally:
        if shown is not None:
            shown.close()
