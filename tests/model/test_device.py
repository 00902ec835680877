"""The device that a name means here."""

import subprocess
import sys

import pytest
import torch

from pipeline.errors import UserError
from pipeline.model import device
from pipeline.model.device import available, kind, resolve


def test_auto_is_the_first_device_that_is_here() -> None:
    assert available()[-1] == "cpu"
    assert resolve("auto", "--device").type == available()[0]
    assert resolve("cpu", "--device") == torch.device("cpu")


def test_the_kind_is_that_of_the_device() -> None:
    for name in ("auto", "cpu", *available()):
        assert kind(name, "--device") == resolve(name, "--device").type


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="of a Linux without a GPU")
def test_torch_is_asked_only_where_a_gpu_may_be() -> None:
    program = (
        "import sys; from pipeline.errors import UserError; from pipeline.model import device\n"
        "if sys.argv[1:]: device._DRIVERS = ('/dev/null',)\n"
        "assert device.kind('auto', 'here') == 'cpu'\n"
        "try: device.kind('cuda', 'here')\n"
        "except UserError as error: assert str(error).startswith(\"here: torch finds no 'cuda' on this machine\")\n"
        "else: raise AssertionError\n"
        "assert ('torch' in sys.modules) == bool(sys.argv[1:])"
    )
    for driver in ([], ["with a driver"]):
        subprocess.run([sys.executable, "-c", program, *driver], check=True)
    assert not device._without_gpu(), "torch is loaded here"


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"evaluate\.device: torch finds no '{name}'.*allowed: auto.*cpu"):
        resolve(name, "evaluate.device")
