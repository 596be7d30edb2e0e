"""The table of networks in docs/models.md is what `python -m bench.models` writes."""

import pytest

from bench.models import NETWORKS, PAGE, row


@pytest.mark.parametrize("network", NETWORKS, ids=[network[0] for network in NETWORKS])
def test_the_table_of_networks_is_up_to_date(network):
    assert f"| {' | '.join(row(*network))} |" in PAGE.read_text()
