import pytest
from torch import nn

from predictors.zerocost import PROXIES
from predictors.zerocost.recorder import BackwardRecorder

RECORDERS = {each.recorder for each in PROXIES.values() if each.recorder is not None}


@pytest.mark.parametrize("kind", RECORDERS, ids=lambda kind: kind.__name__)
def test_only_recorders_of_gradients_watch_the_backward_pass(kind) -> None:
    reads_gradients = any(
        proxy.needs & {"L", "J", "H"} for proxy in PROXIES.values() if proxy.recorder is kind
    )
    recorder = kind(nn.Linear(2, 2), 3)
    assert isinstance(recorder, BackwardRecorder) == reads_gradients
