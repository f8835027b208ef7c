"""What a prediction is computed in: 16 bits only where the device multiplies them natively."""

import pytest
import torch

from misfm.errors import ConfigError
from misfm.inference import precision
from misfm.inference.precision import check_precision, computing_in, dtype_of, name_of


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_what_it_multiplies(monkeypatch, native, expected):
    monkeypatch.setattr(precision, "has_bfloat16_cpu", lambda: native)
    assert dtype_of("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 0), torch.float32), ((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
)
def test_a_gpu_computes_in_what_it_multiplies(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dtype_of("auto", torch.device("cuda", 0)) == expected


def test_what_is_asked_for_is_taken_and_what_there_is_not_is_a_sentence():
    assert dtype_of("float16", torch.device("cpu")) == torch.float16
    assert name_of(torch.bfloat16) == "bfloat16"
    with pytest.raises(ConfigError, match="There is no precision 'half'; choose one of auto, float32"):
        check_precision("half")


def test_layers_compute_in_it_while_the_context_lasts():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad(), computing_in(dtype, x.device):
            assert layer(x).dtype == dtype
