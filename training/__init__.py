"""The training of generators, stylizers and encoders."""

import os

# Before PyTorch starts its threads: where cores are shared, threads that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
