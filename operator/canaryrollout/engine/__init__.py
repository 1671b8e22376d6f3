"""Owns time and order: which rollout is looked at when, by whom, and what happens when a write fails.

The engine knows neither Kubernetes nor kopf; everything outside is reached through the protocols in `ports`.
"""
