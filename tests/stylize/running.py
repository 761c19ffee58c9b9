"""Runs stylize.py as a user types it, and makes the files that it reads."""

from __future__ import annotations

import io
import os
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from media.files import read_image
from media.images import to_float, to_uint8
from networks.stylizer import (
    Stylizer,
)

ROOT = Path(__file__).resolve().parent.parent.parent


def stylize(*arguments, cwd: Path = ROOT) -> SimpleNamespace:
    """Runs the script in this process, which has everything imported already: exit code, stdout and stderr."""
    out, err, code, old = io.StringIO(), io.StringIO(), 0, os.getcwd()
    argv = [str(ROOT / "stylize.py"), *map(str, arguments)]
    try:
        os.chdir(cwd)
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", argv):
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        os.chdir(old)
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def done(*arguments, **options) -> str:
    """What a run that works prints."""
    result = stylize(*arguments, **options)
    assert result.code == 0, result.err
    return result.out


def mistake(*arguments, **options) -> str:
    """The one line that a user's mistake gets."""
    result = stylize(*arguments, **options)
    lines = [line for line in result.err.splitlines() if not line.startswith("model: ")]
    assert result.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.err
    return lines[0]


def save(path: Path, seed: int, height: int = 48, width: int = 64) -> Path:
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    image = (F.interpolate(coarse, size=(height, width), mode="bicubic")[0] * 255).clamp(0, 255).to(torch.uint8)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


def plainly(model: Stylizer, x: torch.Tensor, kernels) -> torch.Tensor:
    """What stylize.py makes of contents x [1, 3, H, W], uint8 [3, H, W]: continued by 48 pixels, or what 8 divides."""
    height, width = x.shape[2:]
    top, left = (min(48, (side - 1) // 8 * 8) for side in (height, width))
    with torch.no_grad():
        y = to_uint8(model(F.pad(x, [left, left, top, top], mode="reflect"), kernels))[0]
    return y[:, top : top + height, left : left + width]


def plain(model: Stylizer, content: Path, kernels) -> torch.Tensor:
    return plainly(model, to_float(read_image(content)[None]), kernels)


def most(path: Path, expected: Path | torch.Tensor) -> int:
    """The largest difference of two images."""
    expected = read_image(expected) if isinstance(expected, Path) else expected
    return int((read_image(path).int() - expected.int()).abs().max())


def film(path: Path, count: int = 12, height: int = 48, width: int = 64, noise: float = 4) -> Path:
    """A still image with new noise in each frame, 12 a second, and a tone."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    still = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy() * 180 + 38
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=12, options={"crf": "1"})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        sound = out.add_stream("aac", rate=48000, layout="mono")
        for _ in range(count):
            image = (still + noise * rng.normal(size=still.shape)).round().clip(0, 255).astype(np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        out.mux(video.encode(None))
        wave = (np.sin(np.arange(4000 * count) / 17) * 9000).astype(np.int16)
        block = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        block.sample_rate = 48000
        out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    return path


def frames(path: Path) -> torch.Tensor:
    from media import video

    return torch.stack(list(video.frames(path)))


def sound(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]
