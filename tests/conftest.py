"""One thread a worker, for small tensors wait at barriers longer than they compute, and as many workers as there are cores."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here, in the workers and in what they start


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`, which pyproject.toml asks for: none where a single test is named."""
    return 0 if any("::" in argument for argument in config.args) else os.cpu_count() or 1
