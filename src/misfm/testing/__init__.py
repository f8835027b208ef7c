"""The contracts as checks: what every network and every pretext task must do, for those who add one.

``check(example)`` or ``check(task)`` for each of :data:`NETWORK_CHECKS` and :data:`PRETEXT_CHECKS`; a check
that fails raises AssertionError.
"""

from misfm.testing.networks import NETWORK_CHECKS, NetworkExample
from misfm.testing.pretexts import PRETEXT_CHECKS

__all__ = ["NETWORK_CHECKS", "PRETEXT_CHECKS", "NetworkExample"]
