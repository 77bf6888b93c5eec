"""The peers of the benchmark `solved`: a script of CleanRL's shape is read until its last episodes are solved."""

import time

import pytest

from experiments import peers

SCRIPT = """
import sys, time
assert sys.argv[1] == "--seed"
for step in range(100):
    print(f"global_step={step}, episodic_return=[{FINAL if step >= 30 else 20.0}]")
    time.sleep(60 if FINAL >= 475 and step == 60 else 0)
print("SPS:", 500)
"""


def clone(folder, final):
    (folder / "cleanrl").mkdir()
    (folder / "cleanrl" / "ppo.py").write_text(f"FINAL = {final}\n{SCRIPT}")
    return folder


def test_cleanrl_is_timed_until_its_last_episodes_are_solved(tmp_path):
    once, began = peers.cleanrl_ppo(clone(tmp_path, 475.0)), time.perf_counter()
    assert 3600 / once() < time.perf_counter() - began < 50, "it is not waited for until its end"


def test_cleanrl_that_is_never_solved_has_no_figure(tmp_path):
    once = peers.cleanrl_ppo(clone(tmp_path, 474.0))
    with pytest.raises(RuntimeError, match=r"it ended at 474\.0, below 475"):
        once()


def test_solved_is_the_mean_of_so_many_episodes():
    assert peers._solved([475.0] * 20) and peers._solved([450.0] * 10 + [500.0] * 10)
    assert not peers._solved([500.0] * 19) and not peers._solved([475.0] * 19 + [474.0])
