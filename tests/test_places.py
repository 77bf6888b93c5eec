"""experiments.places: learners at every place against one device."""

import json

from experiments import places


def test_the_table_of_a_learner(tmp_path, capsys, monkeypatch):
    """With some of the places of one process: test_laws.py has this learner at all of them."""
    some = ("pmap", "fsdp, replica=2,data=4", "tensor, data=4,model=2")
    monkeypatch.setattr(places, "PLACES", {name: places.PLACES[name] for name in some})
    assert places.main(["cnn", "--steps", "1", "--output", str(tmp_path / "places.json")]) == 0
    assert "largest difference of a parameter after 1 steps" in capsys.readouterr().out.replace("\n", " ")
    found = json.loads((tmp_path / "places.json").read_text())
    assert (
        found["steps"] == 1
        and found["places"].keys() == {"cnn"}
        and found["places"]["cnn"].keys() == {*places.PLACES, *places.IN_PROCESSES}
    )
    assert found["places"]["cnn"].pop("tensor, data=4,model=2") == {}  # no table
    for name, cell in found["places"]["cnn"].items():
        assert 0 < cell["difference"] < 1e-5
        assert cell["collectives"]["all-reduce"] > 0
        assert cell["collectives"].keys() == {"all-reduce"} or name not in ("pmap", "shard_map")
        assert "all-gather" in cell["collectives"] or "fsdp" not in name


def test_a_learner_that_is_none(capsys):
    assert places.main(["resnet"]) == 2
    assert "there is no tiny setting 'resnet': there are " in capsys.readouterr().err
    assert places.main(["cnn", "--steps", "0"]) == 2
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err
