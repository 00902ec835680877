"""Which files are run first: the longest, so that no worker is left alone with one at the end."""

import pytest

LONGEST = ("test_pipeline.py", "test_resume.py", "test_distributed.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
