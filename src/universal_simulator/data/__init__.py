"""The data room: files, splits, windows, the generator."""
