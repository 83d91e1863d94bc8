"""Mirrors run folders to an experiment tracker. A mirror is never the truth and never in training's way."""
