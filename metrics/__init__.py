"""How good images are: named metrics that compare a set of fake images with the real ones.

names.py       what the names mean: fid50k_full, fdd50k_full, cmmd30k, pr50k3_full, swd, fd5k_full@…
evaluator.py   how a name becomes a value
features.py    images → features, by all processes together;  cache.py  what is kept of the real images
detectors.py   the feature extractors, with checked weights;  extractors.py, dinov2.py  their networks
encoders.py    our own encoders as feature extractors
summaries.py   what a metric has to know of a set of images;  reference.py  statistics of real images in a file
frechet.py     FID;  lpips.py  PPL's distance
scores.py      KID, CMMD, IS, precision and recall, density and coverage, PPL
swd.py         sliced Wasserstein distance, which needs no detector
nearest.py     python -m metrics nearest: the real images nearest to fakes;  memorization.py  the test for copies
series.py      tables and curves over snapshots and truncations;  plot.py  charts;  report.py  the HTML page
library.py     metrics.compute: the same by one call, also of tensors
request.py     python -m metrics: a snapshot or a folder of images against a data set;  options.py  its options
"""

from metrics.detectors import find_detector
from metrics.evaluator import PPL_EPSILON, Evaluator, NotFinite, choose
from metrics.features import Source, dataset_source
from metrics.library import compute
from metrics.names import higher_is_better, parse_metric

__all__ = [
    "PPL_EPSILON",
    "Evaluator",
    "NotFinite",
    "Source",
    "choose",
    "compute",
    "dataset_source",
    "find_detector",
    "higher_is_better",
    "parse_metric",
]
