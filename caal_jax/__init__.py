"""Confidence-aware anomaly localisation: healthy images in, where-and-how-sure out."""

__version__ = "0.1.0"
