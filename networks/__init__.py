"""The models: nn.Modules only; no files, no processes, no command line."""
