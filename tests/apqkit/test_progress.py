import os
import pty
import re
import subprocess
import sys

import pytest

from apqkit.progress import RichProgress

WORK = """
from apqkit.progress import RichProgress
with RichProgress() as progress:
    with progress.task("supernet [fp32], epochs", 3) as advance:
        for _ in range(3):
            advance(1)
    progress.note("a line [that] stays")
print("result")
"""


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_in_a_log_a_finished_task_is_one_line(capsys):
    with RichProgress() as progress:
        with progress.task("samples, fp32", 4) as advance:
            advance(3)
            assert capsys.readouterr() == ("", "")
            advance(1)
        out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"samples, fp32: 4 in \d+\.\d s\n", err)


def test_a_line_is_neither_marked_up_nor_broken(capsys):
    line = "exported [bold]abc[/bold] [/x] " + "word " * 60
    with RichProgress() as progress:
        progress.note(line)
    assert capsys.readouterr() == ("", line + "\n")


def test_a_task_that_failed_is_not_reported_as_finished(capsys):
    with pytest.raises(ZeroDivisionError), RichProgress() as progress:  # noqa: SIM117
        with progress.task("samples", 4):
            _ = 1 / 0
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_bars_are_drawn_and_results_stay_apart():
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=follower, text=True
    )
    os.close(follower)
    drawn = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        drawn += chunk
    os.close(leader)
    assert process.communicate()[0] == "result\n"
    assert process.returncode == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert re.search(r"supernet \[fp32\], epochs \S* +[0-3]/3 .* left ", shown)
    assert re.search(r"supernet \[fp32\], epochs: 3 in \d\.\d s", shown)
    assert "a line [that] stays" in shown
    assert shown.index("epochs: 3 in") < shown.index("a line [that] stays")
