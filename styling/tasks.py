"""Plans which content in which style is written to which file, and stylizes one after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from media import video_writer
from media.excerpt import WHOLE, Excerpt
from media.files import (
    image_format,
    is_video,
    list_images,
    note_left_out,
    output_paths,
    read_image,
    write_image,
)
from media.video_writer import video_format
from networks.stylizer import Stylizer
from styling.apply import Progress, Settings, check_size, min_side, stylize_image, stylize_masked
from styling.films import frame_stylizer, stylize_video
from styling.frames import frame_paths, stylize_sequence
from styling.styles import CombinedStyle
from torch_utils.errors import UserError, note, printable
from torch_utils.files import missing_message
from torch_utils.memory import out_of_memory


@dataclass(frozen=True)
class Task:
    """One result: a content, the number of the style that it gets, and the file that is written."""

    content: Path
    video: bool
    style: int
    out: Path


def find_contents(path: str | os.PathLike) -> list[Path]:
    """The file itself, or the images and videos of a folder. Raises UserError if there are none."""
    path = Path(path)
    if os.path.isdir(path):  # False for names that are too long, where Path raises
        contents = list_images(path, videos=True)
        note_left_out(path)
        return contents
    if not os.path.exists(path):
        raise UserError(missing_message(path, "name an image, a video or a folder of them with --content"))
    return [path]


def plan_sequence(frames: Sequence[Path], folder: Path, suffix: str | None) -> list[Task]:
    """The tasks of the frames of one film, which keep their names. Raises UserError if two would have the same name."""
    outs = frame_paths(frames, folder, suffix)
    return [Task(frame, False, 0, out) for frame, out in zip(frames, outs, strict=True)]


def names_folder(out: str) -> bool:
    """Whether a path names a folder and not a file: it is one, ends with a slash, or has no extension."""
    return os.path.isdir(out) or out.endswith(("/", os.sep)) or not Path(out).suffix


def plan_file(content: Path, out: Path) -> Task:
    """The task of one content in one style. Raises UserError if files with the extension of `out` cannot be written."""
    moves = is_video(content)
    (video_format if moves else image_format)(out)
    return Task(content, moves, 0, out)


def plan_folder(contents: Sequence[Path], styles: Sequence[Sequence[Path]], folder: Path, suffix: str) -> list[Task]:
    """The tasks of every content in every style, with files named after both.

    Args:
        styles: the files of each style, several if it is combined from them.
        suffix: extension of the images. Videos keep theirs if it can be written, and become .mp4 otherwise.

    Raises:
        UserError: if two results would have the same name.
    """
    moves = {path: is_video(path) for path in contents}
    suffixes = dict.fromkeys(contents, suffix)
    for path in contents:
        if moves[path]:
            suffixes[path] = path.suffix.lower() if path.suffix.lower() in video_writer.FORMATS else ".mp4"
    tasks: dict[Path, Task] = {}
    for i, style in enumerate(styles):
        outs: dict[Path, Path] = {}
        for each in set(suffixes.values()):
            some = [path for path in contents if suffixes[path] == each]
            outs.update(zip(some, output_paths(some, style, folder, each), strict=True))
        for path, out in outs.items():
            if out in tasks:
                raise UserError(
                    f"two results would be written to {out}; rename a style or a content, or stylize them one by one"
                )
            tasks[out] = Task(path, moves[path], i, out)
    order = {path: i for i, path in enumerate(contents)}
    return sorted(tasks.values(), key=lambda task: (order[task.content], task.style))


class Worker:
    """Stylizes contents, one task after another."""

    def __init__(
        self,
        model: Stylizer,
        styles: Sequence[CombinedStyle],
        settings: Settings,
        *,
        mask: Tensor | None = None,
        batch: int | None = None,
        excerpt: Excerpt = WHOLE,
    ):
        """With `mask` [1, H, W], of an image's size or any for a video, the first of two styles applies inside of it.

        `batch` is the number of frames of a video that are stylized together, None to choose by their size, and
        `excerpt` the part of it.
        """
        self.model, self.styles, self.settings, self.mask = model, styles, settings, mask
        self.batch, self.excerpt = batch, excerpt
        self.content: tuple[Path, Tensor | UserError] | None = None  # the last image: its other styles come next

    def do_all(self, tasks: Sequence[Task], keep_going: bool = False) -> dict[Task, str]:
        """Does the tasks and returns the reasons why some could not be done.

        Raises:
            UserError: for the first task that cannot be done, unless `keep_going`.
            DiskFull: if there is no space for a result.
        """
        failed: dict[Task, str] = {}
        with tqdm(total=len(tasks), unit="file", disable=len(tasks) == 1 or not sys.stderr.isatty()) as total:
            for task in tasks:
                total.set_postfix_str(printable(task.content.name))
                try:
                    self.do(task)
                except UserError as error:
                    if not keep_going:
                        raise
                    failed[task] = error.message
                total.update()
        return failed

    def do(self, task: Task) -> None:
        """Does one task. Raises UserError and DiskFull."""
        with enough_memory(task.content), progress_bar("frame" if task.video else "tile") as progress:
            if task.video:
                self.stylize_video(task, progress)
            else:
                self.stylize_image(task, progress)

    def do_sequence(self, tasks: Sequence[Task]) -> None:
        """Does tasks whose contents are the frames of one film. Raises UserError and DiskFull.

        Says how many frames are written when it is stopped.
        """
        frames, outs, written = [task.content for task in tasks], [task.out for task in tasks], 0
        stylize = frame_stylizer(self.model, self.styles, self.settings, self.mask)

        def count(done: int, total: int | None) -> None:
            nonlocal written
            written = done
            progress(done, total)

        try:
            with enough_memory(frames[0].parent), progress_bar("frame") as progress:
                stylize_sequence(frames, outs, stylize, self.batch, count)
        except KeyboardInterrupt:
            note(
                f"{written:,} of {len(outs):,} frames are in {outs[0].parent}; the next run begins with the first "
                "again, because each follows from those before"
            )
            raise

    def stylize_image(self, task: Task, progress: Progress) -> None:
        """Writes an image in its style, or with a mask in both."""
        content = self.read(task.content)
        if self.mask is None:
            image = stylize_image(self.model, content, self.styles[task.style], self.settings, progress)
        else:
            inside, outside = self.styles
            image = stylize_masked(self.model, content, inside, outside, self.mask, self.settings, progress)
        write_image(image, task.out)

    def stylize_video(self, task: Task, progress: Progress) -> None:
        """Writes a video in its style, or with a mask in both. Says that nothing is left of it when it is stopped."""
        styles = self.styles if self.mask is not None else [self.styles[task.style]]
        stylize = frame_stylizer(self.model, styles, self.settings, self.mask)
        try:
            done = stylize_video(task.content, task.out, stylize, self.batch, progress, self.excerpt)
        except KeyboardInterrupt:
            line = f"{task.out} is not written: a video that is stopped before its end is not kept"
            tqdm.write(printable(line), file=sys.stderr)
            raise
        if done.damaged:
            tqdm.write(printable(f"{task.content}: {done.damaged} damaged parts were skipped"), file=sys.stderr)
        if done.sound_encoded:
            suffix = task.out.suffix
            line = f"{task.out}: the sound was converted to AAC, because {suffix} cannot hold it"
            tqdm.write(printable(line), file=sys.stderr)

    def read(self, path: Path) -> Tensor:
        """The image of a content, read once for all of its styles. Raises UserError."""
        if self.content is None or self.content[0] != path:
            try:
                image = read_image(path, min_side=min_side(self.model))
                check_size(self.model, path, image.shape[1], image.shape[2], self.settings.max_side)
                self.content = path, image
            except UserError as error:
                self.content = path, error
        found = self.content[1]
        if isinstance(found, UserError):
            raise found
        return found


@contextmanager
def enough_memory(content: Path) -> Iterator[None]:
    """Raises UserError where the memory is too small for a content."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory for {content}; try --tile 256, --max-side 2048, --batch 1 or --device cpu"
        ) from None


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """A function that moves a progress bar on stderr, which appears with the first call and only on a terminal."""
    shown: tqdm | None = None

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(total=total, unit=unit, leave=False, disable=not sys.stderr.isatty())
        shown.total = total
        shown.update(done - shown.n)

    try:
        yield progress
    finally:
        if shown is not None:
            shown.close()
