"""Tests with a finding are green where it is seen, and only there; see `findings.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from findings import LEFT_OUT, watch

from layers.testing import profiles
from layers.testing.items import PropertyItem

HOME = Path(__file__).parent


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings("ignore"))  # what others' blocks warn of is not asked here
    if not isinstance(item, PropertyItem):
        return
    home: Any = item.getparent(pytest.Module)
    found = [f for f in home.obj.FOUND if f.of(item.contract.name, item.prop.name)]
    if found:
        count = max(1, profiles.budget() // item.prop.cost)
        item.check = lambda until: watch(item.contract, item.prop, item.twin, found, count)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if isinstance(item, PropertyItem) and item.path.parent == HOME and item.prop.name in LEFT_OUT]
    items[:] = [item for item in items if item not in here]
    config.hook.pytest_deselected(items=here)
