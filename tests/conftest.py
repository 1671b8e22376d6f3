"""Fixtures for every tier: ``lab`` and ``apiserver`` come from the lab itself."""

from hypothesis import settings

pytest_plugins = ["lab.pytest_plugin"]

# A slow machine is no defect: what takes how long is measured in bench/, never in a test.
settings.register_profile("canaryrollout", deadline=None)
settings.load_profile("canaryrollout")
