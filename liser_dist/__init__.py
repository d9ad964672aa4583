"""Unlabelled video of people talking in, a tiny speech-emotion model out."""

__version__ = "0.1.0"
