"""Two workers of one thread each, for small tensors wait at barriers longer than they compute.

`OMP_NUM_THREADS` gives another number of threads, `-n 0` runs in one process.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here, in the workers and in what they start


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`, which pyproject.toml asks for: none where a single test is named."""
    return 0 if any("::" in argument for argument in config.args) else os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start processes run one after another, by one worker, so that there are never more processes than two a core."""
    for item in items:
        if item.get_closest_marker("processes"):
            item.add_marker(pytest.mark.xdist_group("processes"))
