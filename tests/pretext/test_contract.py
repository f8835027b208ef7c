"""Every registered pretext task keeps the contract of :mod:`misfm.testing`; nothing here names any."""

import pytest

from misfm.errors import ConfigError
from misfm.pretext import PRETEXTS
from misfm.testing import PRETEXT_CHECKS


@pytest.mark.parametrize("name", PRETEXTS.names())
@pytest.mark.parametrize("check", PRETEXT_CHECKS, ids=lambda check: check.__name__)
def test_every_task_keeps_the_contract(check, name):
    check(PRETEXTS.get(name)())


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'volume-fusion-v2'"):
        PRETEXTS.get("volume-fusion2")
