"""Asserts of the importable contract speak as clearly as those of a test file."""

import pytest

pytest.register_assert_rewrite("executors.contract")
