"""How good the images are: named figures that compare a set of fake images with the real ones.

names.py       what the names mean: fid50k_full, kid50k_full, pr50k3_full, is50k, ppl2_wend, swd
evaluator.py   how a name becomes a figure
features.py    images → statistics, over all processes; kept by content
detectors.py   Inception-v3, VGG-16 and LPIPS, of checked weights
frechet.py     FID;  scores.py  KID, IS, precision and recall, PPL;  swd.py  SWD
"""

from metrics.evaluator import PPL_EPSILON, Evaluator, NotFinite, choose
from metrics.features import Source, dataset_source
from metrics.names import parse_metric

__all__ = ["PPL_EPSILON", "Evaluator", "NotFinite", "Source", "choose", "dataset_source", "parse_metric"]
