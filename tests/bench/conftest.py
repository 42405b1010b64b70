"""The measurements use the same real batch systems as the tests."""

from real.conftest import absent, clean, condor, slurm  # noqa: F401 - fixtures
