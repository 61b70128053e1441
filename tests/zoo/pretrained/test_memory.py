from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.processes
def test_loading_takes_little_more_memory_than_the_weights():
    """The rest, at most 8 MB, is what the allocator and Python keep; less than the weights, and they would be mapped files."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    done = subprocess.run([sys.executable, HERE / "peaks.py"], env=environment, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert len(peaks) == 5
    for way, (grown, weights) in peaks.items():
        assert 0.8 * weights < grown <= 1.15 * weights + 8e6, (way, grown / weights)
