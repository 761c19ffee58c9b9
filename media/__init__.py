"""Everything that reads, decodes, converts, draws and writes images and video."""
