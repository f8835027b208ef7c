"""The public names: few, all there, and nothing heavy is imported for them before it is used."""

import inspect
import subprocess
import sys

import pytest

import misfm


def test_importing_misfm_imports_nothing_heavy():
    script = "import sys, misfm; dir(misfm); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pydantic", "typer"} & set(done.stdout.split())


@pytest.mark.parametrize("name", [name for name in misfm.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name):
    found = getattr(misfm, name)
    assert inspect.getdoc(found)
    assert getattr(misfm, name) is found


def test_the_names_are_listed_once_and_are_few():
    assert len(set(misfm.__all__)) == len(misfm.__all__) <= 25


def test_the_contracts_of_the_python_interface_hold():
    assert callable(misfm.models.create)
    assert callable(misfm.weights.load)
    assert callable(misfm.weights.describe)
    assert callable(misfm.pretext.volume_fusion.sample_levels_v1)
    assert callable(misfm.pretext.volume_fusion.sample_levels_v2)
    assert callable(misfm.pretext.volume_fusion.fuse)


def test_errors_are_of_one_family():
    for error in (misfm.ConfigError, misfm.DataError, misfm.WeightsError):
        assert issubclass(error, misfm.MisfmError)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        misfm.finetun  # noqa: B018
