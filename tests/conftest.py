"""Fixtures for every tier: ``lab`` and ``apiserver`` come from the lab itself, ``table`` keeps what faults showed."""

from hypothesis import settings

pytest_plugins = ["lab.pytest_plugin", "tests.faults.rows"]

# A slow machine is no defect: what takes how long is measured in bench/, never in a test.
settings.register_profile("canaryrollout", deadline=None)
settings.load_profile("canaryrollout")
