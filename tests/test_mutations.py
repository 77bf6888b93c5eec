"""The changes of mutations.py can still be made; the script itself runs on demand."""

import re
from pathlib import Path

import pytest
from mutations import MUTATIONS, ROOT, Mutation, Untouched, mutated


def test_every_change_can_be_made():
    for mutation in MUTATIONS:
        assert mutated(mutation) != (ROOT / "research" / mutation.file).read_text(), mutation.breaks
        compile(mutated(mutation), mutation.file, "exec")
        files, _, words = mutation.tests.partition(" -k ")
        tests = "".join((ROOT / file).read_text() for file in files.split())
        names = re.findall(r'def (test_\w+)|"(\w+)"', tests)  # of tests, and of parameters
        for word in set(re.findall(r"\w+", words)) - {"or"}:
            assert any(word in "".join(name) for name in names), f"{files} have no test {word!r}"
    assert len({(mutation.file, mutation.old, mutation.new) for mutation in MUTATIONS}) == len(MUTATIONS)
    assert sum(not mutation.equivalent for mutation in MUTATIONS) >= 40


def test_every_learner_is_changed():
    changed = {mutation.file for mutation in MUTATIONS}
    bases = {"__init__", "adversarial", "generative", "reinforcement", "self_supervised"}
    learners = {path.stem for path in (ROOT / "research" / "learners").glob("*.py")} - bases
    assert {f"learners/{name}.py" for name in learners} <= changed


def test_a_text_that_is_gone_or_not_alone_is_an_error(tmp_path):
    (tmp_path / "research").mkdir()
    (tmp_path / "research" / "some.py").write_text("a = 1\nb = 1\n")
    change = lambda old: mutated(Mutation("some.py", old, "c = 2", "", ""), Path(tmp_path))
    assert change("b = 1") == "a = 1\nc = 2\n"
    for old, count in ((" = 1", 2), ("d", 0)):
        with pytest.raises(Untouched, match=f"some.py: {count} times, not once"):
            change(old)
