"""Fixtures for every tier: ``lab`` and ``apiserver`` come from the lab itself."""

pytest_plugins = ["lab.pytest_plugin"]
