"""Data sets, augmentation, losses and the training loop."""
