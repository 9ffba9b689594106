"""A broker for the tests of a module: each uses queues of its own."""

from collections.abc import Iterator

import pytest

from tests.cli.processes import ServedBroker, served


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedBroker]:
    with served(tmp_path_factory.mktemp("broker") / "data") as running:
        yield running
