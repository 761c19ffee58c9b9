"""What takes seconds to import, for the process of which the processes of scripts are forks (tests/scripts.py)."""
# ruff: noqa: F401

import torch.distributed.run

import adaconv
import latents.cli
import metrics.__main__
import training.cli
import training.gan
import training.r3gan

torch.optim.Adam([torch.zeros(1)])  # imports much
