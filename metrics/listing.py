"""`python -m metrics --list`: the names of the metrics, and where their detectors are."""

from __future__ import annotations

from metrics.detectors import OPTION, PUBLISHED
from metrics.encoders import SHIPPED
from metrics.names import CLIP, DINOV2, LISTED
from torch_utils.cache import cache_folder
from torch_utils.download import cached_path


def list_metrics() -> None:
    """Prints which metrics there are, and where the detectors are or will be."""
    width = max(map(len, LISTED))
    for name, meaning in LISTED.items():
        print(f"{name:{width}}  {meaning}")
    print(
        "\nAny number of images can stand in a name: fid5k_full, kid2k, pr10k3, swd500, ppl2_wend5k.\n"
        "With _full, fakes are compared with all real images; without, with as many real images as fakes.\n"
        "fd, kd, pr and dc take a detector of this list after an @, or @ and the file of an encoder or a stylizer; "
        "cmmd takes a clip-… one."
    )
    print(f"\nDetectors, downloaded into {cache_folder()} (ADACONV_CACHE names another folder) or given by {OPTION}:")
    used = {"inception": "fid, cleanfid, kid, is", "vgg16": "pr, dc, ppl", DINOV2: "fdd, kdd", CLIP: "cmmd"}
    for name, detector in PUBLISHED.items():
        found = "found" if cached_path(detector.url).exists() else f"will be downloaded from {detector.url}"
        print(f"{name:21}{used.get(name, ''):24}{detector.file_name}: {found}")
    for name, path in SHIPPED.items():
        print(f"{name:21}{'':24}{path}: {'found' if path.exists() else 'missing'}")
