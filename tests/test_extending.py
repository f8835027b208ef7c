"""The programs of docs/extending.md: taken from the page, imported, checked and run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from misfm.commands.pretrain import pretrain
from misfm.models import NETWORKS
from misfm.pretext import PRETEXTS
from misfm.testing import NETWORK_CHECKS, PRETEXT_CHECKS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def blocks(title):
    """The fenced Python programs of a section."""
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write a program into a file and import it; what it registers is forgotten at the end."""
    names, folder = [], tmp_path_factory.mktemp("extending")
    NETWORKS.names(), PRETEXTS.names()  # all that is built in
    with pytest.MonkeyPatch.context() as patch:
        for registry in (NETWORKS, PRETEXTS):
            patch.setattr(registry, "_entries", dict(registry._entries))
        patch.setattr(NETWORKS, "_demands", dict(NETWORKS._demands))

        def imported(program):
            names.append(f"extension{len(names)}")
            path = folder / f"{names[-1]}.py"
            path.write_text(program)
            spec = importlib.util.spec_from_file_location(names[-1], path)
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, names[-1], module)
            spec.loader.exec_module(module)
            return module

        yield imported


@pytest.fixture(scope="module")
def example(run):
    network, test = blocks("A network")
    run(network)
    (found,) = run(test).EXAMPLES
    return found


@pytest.fixture(scope="module")
def task(run):
    run(blocks("A pretext task")[0])
    return PRETEXTS.get("denoise")()


@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=lambda check: check.__name__)
def test_the_network_keeps_the_contract(check, example):
    check(example)


def test_the_network_has_a_demand(example):
    assert NETWORKS.demand(example.name).saved == 200


@pytest.mark.parametrize("check", PRETEXT_CHECKS, ids=lambda check: check.__name__)
def test_the_task_keeps_the_contract(check, task):
    check(task)


def test_the_task_is_called_by_hand_as_the_page_does(run, task):
    module = run(blocks("A pretext task")[1])
    assert set(module.terms) == {"denoising"}
    assert torch.equal(module.batch.targets, module.patches[:, 0])


@pytest.mark.usefixtures("example", "task")
def test_both_pretrain(tmp_path, pretrain_settings):
    settings = pretrain_settings(
        "pretext={name: denoise, options: {noise: 0.3}}",
        "network={name: plain, options: {channels: [4, 8]}}",
        "training.steps=2",
        "training.validate_every=2",
    )
    numbers = pretrain(settings, tmp_path / "run")
    assert numbers["validation_noise_error"] == pytest.approx(0.3**2, rel=0.1)
    assert (tmp_path / "run" / "weights.safetensors").is_file()
