"""A model as a file: loading and saving it, sampling from it, its card and its exports."""
