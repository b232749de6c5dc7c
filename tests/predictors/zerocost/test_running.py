import pytest
import torch
from torch import nn

from predictors.zerocost.running import CallNames, RunningModule


class Inner(nn.Module):
    def __init__(self, seen) -> None:
        super().__init__()
        self.see = seen

    def forward(self, x):
        self.see()
        return x


def test_names_the_innermost_module_that_runs() -> None:
    names: list[str] = []
    running = None

    def see() -> None:
        names.append(running.name)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(Inner(see), Inner(see))

        def forward(self, x):
            see()
            x = self.block(x)
            see()
            return x

    net = Outer()
    running = RunningModule(net)
    running.start()
    net(torch.zeros(1))
    running.stop()
    assert names == ["", "block.0", "block.1", ""]
    net(torch.zeros(1))
    assert names[4:] == [""] * 4


def test_stop_takes_all_hooks_away() -> None:
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()))
    running = RunningModule(net)
    running.start()
    assert all(each._forward_hooks and each._forward_pre_hooks for each in net.modules())
    running.stop()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in net.modules())


@pytest.mark.parametrize("count", [1, 3])
def test_further_calls_are_numbered(count) -> None:
    calls = CallNames()
    expected = ["relu", "relu#2", "relu#3"][:count]
    assert [calls.fresh("relu") for _ in range(count)] == expected
    assert calls.fresh("other") == "other"
