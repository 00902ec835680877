"""The device that a name means here."""

import pytest
import torch

from pipeline.errors import UserError
from pipeline.model.device import available, resolve


def test_auto_is_the_first_device_that_is_here() -> None:
    assert available()[-1] == "cpu"
    assert resolve("auto", "--device").type == available()[0]
    assert resolve("cpu", "--device") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"evaluate\.device: torch finds no '{name}'.*allowed: auto.*cpu"):
        resolve(name, "evaluate.device")
