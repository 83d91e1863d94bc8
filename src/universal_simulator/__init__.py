"""A neural simulator for time-dependent PDEs, and the gated sweep that improves it."""

__version__ = "0.1.0"
