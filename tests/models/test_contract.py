"""Every registered network keeps the contract of :mod:`misfm.testing`; nothing here names any of them.

The tests of a network, ``test_<file>.py``, hold ``EXAMPLES``: a small setting for each name it registers.
"""

import importlib.util
from pathlib import Path

import pytest

import misfm.models
from misfm.errors import ConfigError
from misfm.models import NETWORKS
from misfm.testing import NETWORK_CHECKS

REGISTERED = NETWORKS.names()


def found_examples():
    """The examples of all test files beside this one that have some."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name != Path(__file__).name and "\nEXAMPLES = " in path.read_text():
            spec = importlib.util.spec_from_file_location(f"{path.stem}_examples", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield from module.EXAMPLES


EXAMPLES = list(found_examples())
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


def test_every_network_has_an_example():
    missing = set(REGISTERED) - {example.name for example in EXAMPLES}
    assert not missing, "add them to EXAMPLES in the test of their file"


@every_example
@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=lambda check: check.__name__)
def test_every_network_keeps_the_contract(check, example):
    check(example)


def test_an_option_of_a_wrong_type_is_named_with_its_network():
    with pytest.raises(
        ConfigError, match=r"Network 'unet' cannot be built with the options \{'channels': 5\}: "
    ):
        misfm.models.create("unet", num_classes=2, patch_size=(16, 32, 32), channels=5)


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="There is no network 'unett'; did you mean 'unet'"):
        misfm.models.create("unett", num_classes=2, patch_size=(16, 32, 32))
