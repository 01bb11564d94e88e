"""Deprecations between transformers, PEFT and TRL are theirs: one release is ahead of another. All else is an error."""

from pathlib import Path

import pytest


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the libraries' deprecation warnings pass, in this folder only."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            # PEFT 0.19, when it saves the adapter of a model that was not loaded from anywhere.
            item.add_marker(pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"))
