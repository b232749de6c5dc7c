import numpy as np
import pytest
from predictor_tasks import TASKS, missing_files, read_task


@pytest.mark.parametrize(
    ("name", "shape", "lowest", "highest"),
    [
        ("NAS-Bench-Macro", (6561, 26), 0.4536, 0.9313),
        ("NAS-Bench-201", (15625, 30), 0.10, 0.9157),
        ("NAS-Bench-201 with proxies", (9445, 43), 0.10, 0.9157),
        ("OFA-MobileNetV3", (2162, 142), 0.70998, 0.77466),
        ("OFA-ResNet50 arch and bits", (464, 209), 0.7642, 0.7984),
    ],
)
def test_a_task_holds_every_network_once(public_data, name, shape, lowest, highest):
    missing = missing_files(public_data)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    task = read_task(name, public_data)
    assert task.X.shape == shape
    assert task.accuracy.shape == shape[:1]
    assert task.accuracy.min() == pytest.approx(lowest, abs=1e-4)
    assert task.accuracy.max() == pytest.approx(highest, abs=1e-4)
    assert len(np.unique(task.X, axis=0)) == len(task.X)


def test_every_task_is_tried_here():
    assert len(TASKS) == 5


def test_what_is_missing_is_named_with_its_source(tmp_path):
    named = missing_files(tmp_path)
    assert len(named) == 5
    assert named[0] == (
        "nas_bench_macro/nas_bench_macro_cifar10.csv.gz (github.com/xiusu/NAS-Bench-Macro)"
    )
    assert missing_files(None) == named
