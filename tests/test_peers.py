"""The peers of the benchmarks: a script of CleanRL's shape is read until its last episodes are solved, and one of
purejaxql's shape is trained and then evaluated."""

import sys
import time

import pytest

from experiments import benchmark, peers

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


PUREJAXQL = """
import types
from typing import Any, NamedTuple
import jax.numpy as jnp

class State(NamedTuple):
    params: Any
    batch_stats: Any

class Game:
    def action_space(self, params):
        return types.SimpleNamespace(n=2)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, frames, action, params):
        "The first episode has three frames, of as much reward as the action; each frame after it is one of 100."
        ends = frames >= 2
        info = {"returned_episode": ends, "returned_episode_returns": jnp.where(frames > 2, 100.0, 3.0 * action)}
        return jnp.zeros(1), frames + 1, action, ends, info

class QNetwork:
    def __init__(self, action_dim, norm_type):
        assert (action_dim, norm_type) == (2, "layer_norm")

    def apply(self, weights, observation, train):
        return observation * 0 + weights["params"]

gymnax = types.SimpleNamespace(make=lambda game: (Game(), types.SimpleNamespace(max_steps_in_episode=6)))
LogWrapper = lambda environment: environment

def make_train(config):
    return lambda seed: {"runner_state": (State(jnp.array([0.5, 1.0 - seed[-1]]), ()), seed)}
"""


def test_the_return_of_purejaxql_is_that_of_the_first_episodes(tmp_path, monkeypatch, capsys):
    (tmp_path / "purejaxql").mkdir()
    (tmp_path / "purejaxql" / "pqn_minatar.py").write_text(PUREJAXQL)
    monkeypatch.setattr(peers, "_purejaxql_setting", lambda *_: {"NORM_TYPE": "layer_norm"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "wandb", None)  # what takes its place is gone after the test
    once = peers._purejaxql_return(tmp_path, "Breakout-MinAtar")
    assert [once(), once()] == [3.0, 0.0], "by the weights of seeds 0 and 1"
    assert "over all episodes: 75.75" in capsys.readouterr().err, "of four episodes in six frames"


def contender(code):
    return benchmark.Contender(None, "", (sys.executable, "-c", code))


ALIVE = "for _ in __import__('sys').stdin: print(2.5, flush=True)"


def test_contenders_take_turns(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "contenders", lambda _: {"ours": contender(ALIVE), "theirs": contender(ALIVE)})
    monkeypatch.setattr(benchmark, "device", lambda: "abacus")
    assert benchmark.main(["solved", "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("2.5 ") == 6 and said.count("1.00") == 2 and "2 rounds" in said


def test_photos_are_made_before_the_contenders_start(monkeypatch):
    """They would each write the same files, and read what another is writing."""
    happened = []
    monkeypatch.setattr(benchmark, "photos", lambda: happened.append("made"))
    monkeypatch.setattr(benchmark, "compete", lambda options: happened.append(options.what) or ({"ours": [1.0]}, {}))
    monkeypatch.setattr(benchmark, "device", lambda: "abacus")
    assert benchmark.main(["folder", "--rounds", "1"]) == benchmark.main(["records", "--rounds", "1"]) == 0
    assert happened == ["made", "folder", "records"]


def test_a_contender_of_ours_has_the_options_of_the_benchmark(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(benchmark, "contenders", lambda _: {"ours, bare": benchmark.Contender(lambda: None)})
    monkeypatch.setattr(benchmark.subprocess, "Popen", lambda command, **_: started.append(command) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        benchmark.compete(benchmark.Options("cartpole", rounds=3, num_envs=64))
    options = ["cartpole", "--rounds=3", "--num-envs=64", "--contender=ours, bare"]
    assert started == [(sys.executable, "-m", "experiments.benchmark", *options)]


def test_a_contender_that_dies_is_named_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        benchmark, "contenders", lambda _: {"ours": contender(ALIVE), "theirs": contender("raise SystemExit(3)")}
    )
    assert benchmark.main(["pqn", "--clone", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: the contender theirs ended with status 3: see its message above" in said
    assert f"whether {tmp_path} is a clone" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "rounds must be at least 1, not 0"),
        (["--clone", "nowhere/at/all"], "--clone: there is no directory nowhere/at/all"),
        (["--python", "nowhere/python"], "--python: there is no program nowhere/python"),
    ],
)
def test_what_can_not_be_measured_is_refused(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["pqn", *options])
    assert message in " ".join(capsys.readouterr().err.split())
