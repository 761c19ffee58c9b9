"""`python -m metrics`: evaluates a snapshot, or a folder of images, against the real images of a data set.

`python -m metrics nearest` shows the real images that are nearest to a generator's, `python -m metrics report` writes a
page about a snapshot.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from media.images import save_png
from metrics.detectors import OPTION, find_detector
from metrics.listing import list_metrics
from metrics.names import DEFAULT_DETECTOR, FRECHET, higher_is_better, parse_metric, values_of
from metrics.nearest import (
    FLD_NEEDS_TEST,
    MEMORIZATION,
    OF_NETWORK,
    NearestRequest,
    nearest_images,
    open_request,
    row_names,
)
from metrics.options import BACKGROUND, evaluation_options
from metrics.per_class import class_table, evaluate_per_class
from metrics.reference import SUFFIX, is_reference
from metrics.report import Page, read_history, write_page
from metrics.request import Request, evaluate, left_out_line, save_statistics
from metrics.series import Record, print_series, ranked_values
from models.sampling import SEEDS_OF, SEEDS_OF_HELP
from models.snapshot import find_snapshot
from torch_utils import distributed
from torch_utils.cli import (
    ClassName,
    Float,
    Group,
    NumberRanges,
    check_result,
    choose_device,
    device_option,
    option,
    run,
    typed,
    writable_file,
)  # fmt: skip
from torch_utils.errors import CommandError, Failure, UserError, note, one_line, show
from torch_utils.files import missing_message, write_file

EXAMPLE = """\
python -m metrics --metrics fid50k_full,kid50k_full,pr50k3_full --network runs --data ffhq.zip --gpus 8
python -m metrics --metrics fid5k_full,kid5k_full --fakes my_images/ --data photos/ --json
python -m metrics --metrics fid50k_full,pr50k3_full --network runs --data ffhq.zip --trunc 0.5,0.7,1
python -m metrics --metrics swd2k --network runs/00003-ffhq-adaconv-auto8 --all --data ffhq.zip
python -m metrics --metrics swd2k,fd5k_full@tiny-imagenet --network runs --data faces64.zip
"""
REPORT = """\
python -m metrics report --network runs/00003-ffhq-adaconv-auto8 --data ffhq.zip --metrics fid50k_full,pr50k3_full
"""
NEAREST = """\
python -m metrics nearest --network runs --data faces64.zip --seeds 0-15 --out nearest.png
"""


def describe(name: str, values: dict[str, Any]) -> str:
    """A metric and its further values in one line: `swd 97.32 (32: 101.2, 16: 93.4)`."""
    found = values_of(name, values)
    further = {suffix[1:]: value for suffix, value in found.items() if suffix and isinstance(value, float)}
    text = ", ".join(f"{suffix}: {value:.4g}" for suffix, value in further.items())
    if "" not in found:
        return f"{name} {text}"
    return f"{name} {found['']:.4g}" + (f" ({text})" if text else "")


def parse_names(text: str, generator: bool) -> list[str]:
    """The names in `fid50k_full,swd2k`. Raises UserError for one that does not exist, or is not of images."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        metric = parse_metric(name)
        if metric.detector:
            find_detector(metric.detector)
        if metric.kind == "ppl" and not generator:
            raise UserError(f"{name} needs a generator, not images; give one with --network, or leave {name} out")
    return names


@click.group(cls=Group, default="evaluate")
def main() -> None:
    """Compare generated images, or a folder of images, with real ones.

    Some metrics need a detector, whose weights are downloaded once. Metrics whose detector cannot be had are left out:
    the others are printed, and the exit code is 2.
    """


OF_FAKES = {  # options that --save-stats would leave unused
    "network": "--network", "fakes": "--fakes", "trunc": "--trunc", "all_snapshots": "--all", "best": "--best",
    "extrapolate": "--extrapolate", "per_class": "--per-class", "as_json": "--json", "plot": "--plot",
}  # fmt: skip


def check_paths(data: str | None, weights: Sequence[str], names: Sequence[str], mirror: bool) -> None:
    """Raises click.UsageError without real images for the metrics that compare with them.

    Raises UserError for a file of weights that is not there, and for --mirror without images.
    """
    if data is None and any(parse_metric(name).takes_reals for name in names):
        raise click.UsageError("--data is missing: name a folder or ZIP of real images")
    if mirror and (data is None or is_reference(data)):
        raise UserError("--mirror flips the real images, and --data names none; leave it out")
    for path in weights:
        if not Path(path).is_file():
            raise UserError(missing_message(Path(path), f"name the file with {OPTION}"))


def check_options(names: Sequence[str], several: bool, best: str | None, per_class: bool, options: Any) -> None:
    """Raises UserError for options that do not go together. `several` says whether --trunc has several values."""
    network, fakes, all_snapshots = options["network"], options["fakes"], options["all_snapshots"]
    if (network is None) == (fakes is None):
        both = "" if network is None else ", not both"
        raise UserError(f"name --network or --fakes{both}: what is to be evaluated")
    if fakes is not None and (typed("trunc") or all_snapshots):
        given = "--all is of a run" if all_snapshots else "--trunc changes the images of --network"
        raise UserError(f"{given}, not of --fakes; leave it out")
    if fakes is not None and options["extrapolate"]:
        raise UserError("--extrapolate generates images with --network, not with --fakes; leave it out")
    if options["extrapolate"] and not any(parse_metric(name).kind in FRECHET for name in names):
        raise UserError("--extrapolate is for Fréchet distances, such as fid50k; add one to --metrics, or leave it out")
    if all_snapshots and several:
        raise UserError("--all and several values of --trunc do not go together; give one value")
    if per_class and (all_snapshots or several):
        raise UserError("--per-class is of one snapshot; leave out --all, and give one value of --trunc")
    if per_class and (options["data"] is None or is_reference(options["data"])):
        raise UserError("--per-class takes the classes from the real images; name a folder or ZIP of them with --data")
    if best is not None and not all_snapshots:
        raise UserError("--best is of the snapshots of a run; add --all, or leave it out")
    if best is not None:
        higher_is_better(best, names)  # or raises


def check_saving(names: Sequence[str], data: str | None, out: str) -> None:
    """Raises UserError where --save-stats cannot write the statistics of --data for these metrics."""
    if useless := [option for parameter, option in OF_FAKES.items() if typed(parameter)]:
        raise UserError(f"--save-stats writes the statistics of --data alone; leave out {' and '.join(useless)}")
    if len(names) != 1 or parse_metric(names[0]).kind not in FRECHET:
        raise UserError(
            "--save-stats writes a file for one Fréchet distance, such as fid50k_full; name it in --metrics"
        )
    if is_reference(data):
        raise UserError(f"{data} holds statistics already; name a folder or ZIP of images with --data")
    writable_file(out, "--save-stats")
    check_result(out, "--save-stats", SUFFIX, data)


@main.command("evaluate", example=EXAMPLE)
@evaluation_options
@option(
    "What",
    "--fakes",
    metavar="PATH",
    help="Folder or ZIP of images to evaluate, of any sizes except for SWD, instead of --network.",
)
@option("What", "--list", "listed", is_flag=True, help="List the metrics, and where their detectors are, and stop.")
@option(
    "What",
    "--all",
    "all_snapshots",
    is_flag=True,
    help="Evaluate all snapshots of the run that --network names, or all network pickles of StyleGAN2 in that folder.",
)
@option(
    "What",
    "--best",
    metavar="NAME",
    help="Value by which --all marks the best snapshot, and links it as best.safetensors (of pickles, best.pkl) in "
    "the run, such as swd2k or pr10k3_recall.  [default: the first of --metrics]",
)
@option("How", "--json", "as_json", is_flag=True, help="Print one JSON object, with all that the metrics depend on.")
@option(
    "How",
    "--plot",
    metavar="SVG",
    default="metrics.svg",
    help="File of the curves, over the snapshots of --all or several values of --trunc.",
)
@option("What", "--per-class", is_flag=True, help="Compute the metrics of each class by itself, and their mean.")
@option(
    "What",
    "--save-stats",
    metavar="NPZ",
    help="Write mean and covariance of the features of --data, as mu and sigma, for one Fréchet distance, and stop. "
    "--data takes such a file, also one of pytorch-fid or ADM, in place of the images.",
)
def evaluate_command(
    metrics: str,
    per_class: bool,
    listed: bool,
    best: str | None,
    gpus: int | None,
    procs: int,
    as_json: bool,
    plot: str,
    trunc: list[float] | None,
    **options: Any,
) -> None:
    """Compare generated images, or a folder of images, with real ones."""
    if listed:
        return list_metrics()
    all_snapshots, save_stats = options["all_snapshots"], options["save_stats"]
    names = parse_names(metrics, generator=options["fakes"] is None)
    check_paths(options["data"], options["detector_weights"], names, options["mirror"])
    several = trunc is not None and len(trunc) > 1
    if save_stats is not None:
        check_saving(names, options["data"], save_stats)
    else:
        check_options(names, several, best, per_class, options)
    if all_snapshots or several:
        writable_file(plot, "--plot")
        check_result(plot, "--plot", ".svg")
    gpus = distributed.count_gpus(gpus)
    request = Request(names=names, gpus=gpus, truncations=trunc or [1.0], **options)
    function = save_statistics if save_stats is not None else evaluate_per_class if per_class else evaluate
    records = evaluate_together(request, processes(gpus, procs), function)
    if save_stats is not None:
        return
    left_out = records[0].get("left_out", {})
    problems = [left_out_line(left_out)] if left_out else []
    if all_snapshots:
        best = best or next(iter(ranked_values(records, names) or parse_metric(names[0]).rankings()))
        problems += print_series(records, names, "kimg", best, as_json, plot)
    elif len(records) > 1:
        print_series(records, names, "truncation", None, as_json, plot)
    elif as_json:
        print(json.dumps(records[0]))
    elif per_class:
        print(class_table(records[0]))
    else:
        for name in names:
            if values_of(name, records[0]):
                show(describe(name, records[0]))
    raise_problems(records, problems)


def raise_problems(records: list[Record], problems: list[str]) -> None:
    """Raises Failure where a metric of a single evaluation is no number, and UserError for other problems."""
    if len(records) == 1 and "failed" in records[0]:
        raise Failure("; ".join([*problems, records[0]["failed"]]))
    if problems:
        raise UserError("; ".join(problems))


def processes(gpus: int, procs: int) -> int:
    """One for each GPU; on the CPU, as many as --procs says. Raises UserError where that says otherwise."""
    if gpus and typed("procs") and procs != gpus:
        raise UserError(f"--procs {procs} is for the CPU; add --gpus 0, or leave it out: each GPU has one process")
    return gpus or procs


def evaluate_together(
    request: Request, processes: int, function: Callable[[Request, Path], None] = evaluate
) -> list[Record]:
    """The records of a request, evaluated by that many processes. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        distributed.launch(function, request, result, processes=processes, gpus=request.gpus > 0)
        return json.loads(result.read_text())


@main.command("nearest", example=NEAREST)
@option("What", "--network", metavar="PATH", help="Snapshot whose images are compared, or a run: its newest snapshot.")
@option("What", "--fakes", metavar="PATH", help="Folder or ZIP of the images to compare, instead of --network.")
@option("What", "--data", metavar="PATH", required=True, help="Folder or ZIP of the images that were trained on.")
@option(
    "What",
    "--test",
    metavar="PATH",
    help="Folder or ZIP of images of the same kind that were not trained on: whether fakes lie nearer to the training "
    "images than these do is then tested (C_T).",
)
@option(
    "What",
    "--fld",
    is_flag=True,
    help="With --test, add the feature likelihood divergence (FLD), which grows with bad images, lost modes, copies. "
    "It takes minutes for tens of thousands of images.",
)
@option("What", "--seeds", type=NumberRanges(), default="0-15", help="Seeds and ranges of seeds, such as 0-99,200,3.")
@option("What", "--seeds-of", type=click.Choice(SEEDS_OF), default=SEEDS_OF[0], help=SEEDS_OF_HELP)
@option("What", "--class", "class_name", type=ClassName(), help="Class of all images, by number or by name.")
@option("What", "--trunc", type=Float(-10, 10), default=1.0, help="Truncation psi of the images; 1 is none.")
@option(
    "How",
    "--detector",
    metavar="NAME",
    default=DEFAULT_DETECTOR,
    help="Detector in whose features images are near: tiny-imagenet, which is shipped, vgg16, inception, "
    "dinov2-vit-l-14, another of python -m metrics --list, or the file of an encoder or a stylizer.",
)
@option("How", OPTION, metavar="FILE", multiple=True, help="File with the weights of a published detector.")
@BACKGROUND
@option("How", "--neighbours", type=click.IntRange(1, 100), default=5, help="Number of nearest images to show.")
@option("How", "--batch", type=click.IntRange(1, 2**16), default=64, help="Batch size. It changes the memory only.")
@option("How", "--workers", type=click.IntRange(0, 64), default=2, help="Number of processes that read images.")
@device_option("How")
@option("Output", "--out", metavar="PNG", default="nearest.png", help="Sheet: a row for each fake, its image first.")
@option(
    "Output",
    "--rows",
    type=click.IntRange(1, 1000),
    default=16,
    help="Largest number of rows of the sheet; with more fakes, it shows those nearest to training images.",
)
@option("Output", "--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def nearest_command(
    device: str | None,
    out: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the real images nearest to a generator's, to find copies.

    Flipped images count. A fake is authentic if its nearest real image is nearer to another real image than to it.
    With --test, C_T tells whether fakes lie nearer to the training images than new images do: far below 0, they are
    copies; far above 0, the model fits badly.
    """
    if options["network"] is not None and options["fakes"] is not None:
        raise UserError("name --network or --fakes, not both: what is to be compared")
    if options["fakes"] is not None and (useless := [o for p, o in OF_NETWORK.items() if typed(p)]):
        raise UserError(f"{' and '.join(useless)} would change images of --network, not --fakes; leave them out")
    writable_file(out, "--out")
    check_result(out, "--out", ".png", options["data"], options["fakes"], options["test"])
    request = NearestRequest(device=choose_device(device), **options)
    found = nearest_images(request)
    save_png(found.sheet, out)
    if as_json:
        print(json.dumps({"images": found.rows, **found.metrics, "detector": request.detector}))
        return
    for row in (found.rows[n] for n in found.shown):
        fake, real = row_names(row)
        verdict = "" if row["authentic"] else "  nearer than real images are to each other"
        show(
            f"{fake}: {real}, distance {row['distance']:.4g} "
            f"({row['nearest_to_another']:.4g} from there to another real image){verdict}"
        )
    authentic = sum(row["authentic"] for row in found.rows)
    tests = [f"; {name} {found.metrics[key]:.2f}" for key, name in MEMORIZATION.items() if key in found.metrics]
    show(f"{authentic} of {len(found.rows)} authentic{''.join(tests)}; the sheet is {out}")


@main.command("report", example=REPORT)
@evaluation_options
@option("What", "--test", metavar="PATH", help="Folder or ZIP of images that were not trained on, for C_T.")
@option("What", "--fld", is_flag=True, help="With --test, add the feature likelihood divergence (FLD).")
@option(
    "What",
    "--seeds",
    type=NumberRanges(),
    default="0-199",
    help="Seeds of the images to find the nearest training images of.",
)
@option(
    "How",
    "--detector",
    metavar="NAME",
    help="Detector whose features say which training images are nearest.  [default: tiny-imagenet]",
)
@option("Output", "--out", metavar="HTML", default="report.html", help="The page.")
def report_command(
    metrics: str,
    trunc: list[float] | None,
    test: str | None,
    fld: bool,
    seeds: list[int],
    detector: str | None,
    gpus: int | None,
    procs: int,
    out: str,
    **options: Any,
) -> None:
    """Write one HTML page about a snapshot: metrics and images.

    It shows the metrics with their settings, curves, images, and the nearest training images.

    The page needs no other file. Metrics whose detector cannot be had are left out, and the page says why.
    """
    names = parse_names(metrics, generator=True)
    data, weights = options["data"], options["detector_weights"]
    if data is None or is_reference(data):
        raise click.UsageError("--data is missing: name a folder or ZIP of real images, which the page shows")
    check_paths(data, weights, names, options["mirror"])
    if fld and test is None:
        raise UserError(FLD_NEEDS_TEST)
    writable_file(out, "--out")
    check_result(out, "--out", ".html")
    gpus = distributed.count_gpus(gpus)
    request = Request(
        names=names, gpus=gpus, truncations=trunc or [1.0], fakes=None, all_snapshots=False,
        **{**options, "network": str(find_snapshot(options["network"]))},
    )  # fmt: skip
    history = read_history(Path(str(request.network)))
    nearest = nearest_request(request, test, fld, seeds, detector or DEFAULT_DETECTOR)
    asked = bool(detector or test)
    if asked:  # mistakes in what they name cost no evaluation; in the CPU's memory, as GPUs are not needed yet
        open_request(replace(nearest, device="cpu"))
    records = evaluate_together(request, processes(gpus, procs))
    found, failed, problem = None, None, ""
    try:
        found = nearest_images(nearest)
    except Exception as error:  # raised when there is a page of the rest, which may have taken hours
        failed, problem = error, error.message if isinstance(error, CommandError) else one_line(error)
    page = write_page(Page(records, history, found, nearest.detector, problem, request.background), nearest.device)
    write_file(out, page.encode())
    show(f"The report is {out}.")
    if failed is not None and not isinstance(failed, CommandError):
        raise failed
    if problem and not asked:
        note(f"warning: nearest training images are left out: {problem}")
    raise_problems(records, [problem] if problem and asked else [])


def nearest_request(request: Request, test: str | None, fld: bool, seeds: list[int], detector: str) -> NearestRequest:
    """The request for the nearest training images on the page of a request."""
    return NearestRequest(
        network=request.network, fakes=None, data=str(request.data), test=test, fld=fld, seeds=seeds,
        seeds_of="adaconv", class_name=None, trunc=request.truncations[0], detector=detector,
        detector_weights=request.detector_weights, neighbours=5, rows=8, batch=request.batch, workers=request.workers,
        device="cuda" if request.gpus else "cpu", background=request.background,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
