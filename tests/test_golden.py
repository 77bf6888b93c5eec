"""Every config, tiny, trains as it did when it was last recorded; see golden.py. What is not installed skips."""

from dataclasses import dataclass

import golden
import numpy as np
import pytest

from research.core.errors import NotInstalled
from research.data.few_labels import FewLabels
from research.data.images import Arrays, Images
from research.training import config


@pytest.mark.parametrize("name", config.names())
def test_golden(name):
    old = golden.load(name)
    try:
        new = golden.record(name)
    except NotInstalled as missing:
        pytest.skip(str(missing))
    found = golden.differences(old, new)
    shapes = lambda recorded: {path: leaf[:2] for path, leaf in recorded["parameters"].items()}
    assert shapes(new) == shapes(old)
    assert {path: value for path, value in found["parameters"].items() if value > 1e-5} == {}
    numbers = {f"{part} {key}": values for part in ("losses", "evaluation") for key, values in found[part].items()}
    assert numbers.keys() == old["spread"].keys()
    too_far = {key: values > 10 * np.array(old["spread"][key]) for key, values in numbers.items()}
    assert {key: numbers[key].tolist() for key, steps in too_far.items() if steps.any()} == {}


def test_a_source_of_ones_own_is_made_up_as_the_one_it_inherits_from(tmp_path):
    @dataclass(frozen=True)
    class Absent(Images):
        name: str = "absent"
        side: int = 3

        def arrays(self) -> Arrays:
            raise AssertionError("its files are not read")

    found = golden.made(Absent(batch=7, side=5), tmp_path)
    assert found.spec().shape == (16, 16, 3) and (found.batch, found.side) == (7, 5)
    few = golden.made(FewLabels(name="cifar10", labels=20), tmp_path)
    assert few.feeds().train.size == 20 and few.spec().shape == (16, 16, 3)


def test_no_golden_file_is_left_over():
    assert sorted(file.stem for file in golden.FOLDER.glob("*.json")) == config.names()


def test_what_is_apart():
    assert golden.apart([1.0, -0.5], [1.0, -0.5]).tolist() == [0, 0]
    assert golden.apart([2.0, 4.0], [2.0, 4.4]).tolist() == pytest.approx([0, 0.4 / 4.4])
    assert golden.apart([0.0, 4.0], [0.1, 4.0])[0] == pytest.approx(0.1 / 2), "relative to the mean size, near 0"
    assert golden.apart(0.0, 0.0) == 0
    old = {"parameters": {"a": [[2], "float32", 1.0], "b": [[], "int32", 1.0]}, "losses": {}, "evaluation": {"x": 1.0}}
    new = {"parameters": {"a": [[3], "float32", 1.0], "c": [[], "int32", 1.0]}, "losses": {}, "evaluation": {"x": 2.0}}
    expected = {"parameters": dict.fromkeys("abc", float("inf")), "losses": {}, "evaluation": {"x": 0.5}}
    assert golden.differences(old, new) == expected


def test_the_spread_is_that_up_to_each_value():
    of = lambda *losses: {"parameters": {}, "losses": {"loss": list(losses)}, "evaluation": {}}
    found = golden.spread(of(1.0, 1.0, 1.0), [of(1.0, 1.0, 1.0), of(1.0, 1.25, 1.0)])
    assert found == {"losses loss": [golden.FLOOR, 0.2, 0.2]}
