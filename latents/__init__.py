"""What people do with the codes of a trained generator: mixes, walks, kernels to look at, directions."""
