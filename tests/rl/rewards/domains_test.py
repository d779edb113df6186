"""Which rule a problem falls under; what each rule says is in the rows by hand of cases/."""

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.data import domains as data_domains
from thinkfirst.rl.rewards import domains


@pytest.mark.parametrize("name", [*data_domains.CHECKED, *data_domains.OPEN])
def test_every_domain_that_data_come_with_has_a_rule(name):
    assert (domains.kind(batch.Problem("id", "?", "18", domain=name)) == "open") == (name in data_domains.OPEN)


def test_choices_and_tests_decide_whatever_the_domain_is_called():
    assert domains.kind(batch.Problem("id", "?", "A", domain="nobody's", choices=("a", "b"))) == "choice"
    assert domains.kind(batch.Problem("id", "?", "", domain="nobody's", tests=("assert f()",))) == "code"
