"""Progressive delivery for Istio: moves traffic step by step, judges every step, and takes it back in time."""

__version__ = "0.1.0"
