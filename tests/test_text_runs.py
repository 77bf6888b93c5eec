"""Runs on text, from the command line to what they leave; and what is said of bad input."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from learners import EXPERIMENTS
from printed import said

from experiments import agree, sample, train
from experiments.evaluate import main as evaluate
from research.core.errors import UserError
from research.core.experiment import Split
from research.core.optimizers import Optimizer
from research.core.transformations import per_seed
from research.core.update import UpdateConfig
from research.data.text import IGNORED, Text
from research.evaluation.text import before_eos
from research.nets.attention import attention_weights
from research.nets.transformer import LanguageModel, Stack
from research.training import config

WORDS = ["der", "rote", "blaue", "Mond", "und", "die", "Sonne", "läuft", "nicht"]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A run on a text that says the same again and again."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text("the sun, the moon and the stars; " * 60)
    small = "--data.context 16 --data.batch 16 --net.width 32 --net.embedding 8 --steps 150 --run.steps-per-dispatch 50"
    arguments = f"{small} --run.evaluate-every 150 --run.save-every 150 --optimizer.learning-rate 0.02".split()
    directory = folder / "run"
    where = ["--data.name", str(folder / "text.txt"), "--workdir", str(directory)]
    assert train.main(["stdlib_lstm", *arguments, *where]) == 0
    return directory


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A run on sentences whose translations are spelt in capitals."""
    folder, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, size in (("train", 300), ("validation", 8), ("test", 12)):
        lines = [" ".join(random.choice(WORDS, n)) for n in random.integers(2, 5, size)]
        (folder / f"{split}.aa").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.bb").write_text("\n".join(lines).upper() + "\n")
    small = (
        "--data.source aa --data.target bb --data.test test --data.vocabulary 320 --data.lengths 16 --data.batch 32 "
        "--data.evaluation-batch 8 --net.stack.layers 1 --net.stack.width 32 --net.stack.heads 2 "
        "--net.stack.mlp-dim 64 --net.stack.dropout 0 --steps 200 --run.steps-per-dispatch 10 "
        "--run.evaluate-every 200 --run.save-every 200 "
        "--optimizer.learning-rate 0.02 --optimizer.warmup 20 --average 0.9 "
        "--bleu-every 150 --run.metric bleu --run.mode max --run.checkpoint-for-test best"
    )
    where = ["--data.name", f"{folder}/", "--workdir", str(folder / "run")]
    assert train.main(["multi30k_transformer", *small.split(), *where]) == 0
    return folder / "run"


def test_a_language_model_learns_its_text(language, capsys):
    summary = json.loads((language / "summary.json").read_text())
    loss = summary["test"]["loss"]["mean"]
    assert loss < 0.5  # most characters are certain, where the one before was seen
    assert summary["test"]["perplexity"]["mean"] == pytest.approx(np.exp(loss), rel=1e-4)
    assert summary["test"]["bits_per_character"]["mean"] == pytest.approx(loss / np.log(2), rel=1e-4)
    assert {"cells.png", "curves.png", "samples.txt", "tokenizer.json"} <= {path.name for path in language.iterdir()}
    assert evaluate([str(language)]) == 0
    capsys.readouterr()
    assert sample.main([str(language), "--prompt", "the sun, the m", "--length", "40", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "the sun, the moon and the stars; the sun, the moon and\n"


@pytest.mark.parametrize("context", [1, 16])
def test_samples_follow_the_text(tmp_path, context):
    """What fills the last window is no prompt; a window of one token is a prompt."""
    (tmp_path / "text.txt").write_text("the sun, the moon and the stars; " * 60)
    data = Text(name=str(tmp_path / "text.txt"), context=context, evaluation_batch=64)
    experiment = config.load("stdlib_lstm")
    net = experiment.net.clone(width=4, embedding=4)
    experiment = dataclasses.replace(experiment, data=data, net=net)
    [report], test = experiment.reports(None), experiment.feeds().test
    assert context == 1 or (test[-1].targets[np.flatnonzero(test[-1].mask)[-1]] == IGNORED).any()
    state = jax.jit(experiment.build().init)(jax.random.key(0))
    report.run(state, Split("test", test), tmp_path)
    prompts = [line.split("⟫")[0] for line in (tmp_path / "samples.txt").read_text().split("\n\n----\n\n")[1:]]
    assert len(prompts) == 3 and all(prompt in "the sun, the moon and the stars; " * 2 for prompt in prompts)
    assert [len(prompt) for prompt in prompts] == [max(1, context // 2)] * 3


def test_what_can_not_be_sampled(language, capsys):
    for arguments, message in (
        (["--prompt", "Ωx"], "Ω"),
        (["--prompt", ""], "1 to 15 tokens"),
        (["--prompt", "the moon and the stars"], "1 to 15 tokens"),
    ):
        assert sample.main([str(language), *arguments]) == 2
        out, error = capsys.readouterr()
        assert message in error and not out
    assert sample.main([str(language.parent / "nothing")]) == 2
    for option in ("--top-p=0", "--temperature=nan", "--temperature=inf"):
        with pytest.raises(SystemExit, match="2"):
            sample.main([str(language), option])
        assert "--temperature and --top-k 0 or more, --top-p from 0 to 1" in said(capsys)
    with pytest.raises(SystemExit, match="2"):
        sample.main([str(language), "--seed", "99999999999999999999"])
    assert "seed must be between -2147483648 and 2147483647" in said(capsys)


def test_another_tokenizer_is_refused(language, capsys):
    kept = (language / "tokenizer.json").read_text()
    try:
        (language / "tokenizer.json").write_text(kept.replace("sun", "son") + " ")
        assert sample.main([str(language)]) == 2
        assert "is not the tokenizer that this data makes" in said(capsys)
    finally:
        (language / "tokenizer.json").write_text(kept)
    text = language.parent / "other.txt"
    text.write_text("quite another text, with a longer alphabet: xyz! " * 40)
    other = ["stdlib_lstm", "--data.name", str(text), "--data.context", "16", "--init-from", str(language)]
    assert train.main([*other, "--workdir", str(language.parent / "other")]) == 2
    assert "is not the tokenizer" in said(capsys)


def test_a_translator_learns_its_language(translator, capsys):
    summary = json.loads((translator / "summary.json").read_text())
    assert summary["reports"]["bleu"] > 80
    told = (translator / "translations.txt").read_text()
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in told and told.count("reference:") == 12
    assert (translator / "attention.png").stat().st_size > 1000
    assert sample.main([str(translator), "--prompt", "der rote Mond"]) == 0
    assert capsys.readouterr().out == "DER ROTE MOND\n"
    assert sample.main([str(translator), "--prompt", "der rote Mond und " * 9]) == 2
    assert "longer than the net's context of 16" in said(capsys)
    assert sample.main([str(translator), "--prompt", "der rote Mond", "--top-k", "3"]) == 2
    assert "leave out --top-k" in said(capsys)


def test_the_best_checkpoint_can_go_by_bleu(translator):
    """BLEU of the validation sentences is logged at its own interval; the final State is that of the best one."""
    lines = [json.loads(line) for line in (translator / "metrics.jsonl").read_text().splitlines()]
    validation = {line["step"]: line for line in lines if line["split"] == "validation"}
    assert ["loss" in validation[step] for step in (150, 200)] == [False, True]  # the loss is evaluated every 200 steps
    bleu = {step: line["bleu"] for step, line in validation.items()}
    summary = json.loads((translator / "summary.json").read_text())
    assert summary["step"] == max(bleu, key=bleu.get) and summary["state"] == "best"
    for step in (150, 200):
        written = (translator / "history" / f"{step:08}" / "translations.txt").read_text()
        assert written.startswith(f"BLEU = {bleu[step]:.2f}") and written.count("reference:") == 8  # not the 12 of test


def test_bleu_is_of_every_seed(tmp_path):
    experiment = dataclasses.replace(EXPERIMENTS["translator"], bleu_every=4)
    learner, batches = experiment.build(), experiment.feeds().validation
    states = [jax.jit(learner.init)(jax.random.key(seed)) for seed in (0, 1)]
    (report,) = experiment.reports(None)
    run = lambda state: report.run(state, Split("validation", batches), tmp_path)
    single = [run(state)["brevity_penalty"] for state in states]
    stacked = jax.jit(per_seed(learner).init)(jax.numpy.stack([state.key for state in states]))
    assert run(stacked)["brevity_penalty"] == pytest.approx(single) and single[0] != single[1]
    assert set(report.metrics) == {"bleu", "brevity_penalty"} and report.every == 4


def test_pairs_of_unequal_count(translator, tmp_path, capsys):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.aa").write_text("eins\nzwei\n")
        (tmp_path / f"{name}.bb").write_text("eins\n")
    languages = ["--data.source", "aa", "--data.target", "bb", "--data.test", "test"]
    arguments = ["multi30k_lstm", "--data.name", f"{tmp_path}/", *languages, "--workdir", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    assert "expected the same number of sentences" in said(capsys)


def test_attention_maps_are_what_the_net_attends_to():
    """Weights times values are what `jax.nn.dot_product_attention` gives; two heads share each head of keys."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 5, 4, 8))
    k, v = k[:, :, :2], v[:, :, :2]
    maps = attention_weights(q, k, causal=True)
    assert maps.shape == (1, 4, 5, 5)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    found = np.einsum("lhts,lshd->lthd", maps, np.repeat(v, 2, axis=2))
    np.testing.assert_allclose(found, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=1e-5)


def test_words_end_at_the_end():
    assert before_eos(np.array([7, 8, 2, 9])).tolist() == [7, 8]
    assert before_eos(np.array([7, 0, 0])).tolist() == [7]
    assert before_eos(np.array([7, 8])).tolist() == [7, 8]


def test_what_agreeing_needs_is_said_before_anything_trains(capsys, monkeypatch):
    assert agree.main(["--steps", "0"]) == 2
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err
    monkeypatch.setattr(agree.importlib.util, "find_spec", lambda name: None)
    assert agree.main([]) == 2
    assert "this needs PyTorch: pip install -e .[bench]" in capsys.readouterr().err


def test_training_agrees_with_pytorch():
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    optimizer = Optimizer(learning_rate=0.01, schedule="cosine", warmup=2, weight_decay=0.1, b2=0.99)
    stack = Stack(layers=2, width=16, heads=2, dropout=0.2, attention_dropout=0.2, bias=False)
    experiment = dataclasses.replace(
        EXPERIMENTS["transformer"], net=LanguageModel(stack), optimizer=optimizer, update=UpdateConfig(clip=0.5)
    )
    plain = agree.without_dropout(experiment)
    batches = [plain.feeds().train.batch_at(step) for step in range(8)]
    ours, start = agree.jax_losses(plain, batches)
    np.testing.assert_allclose(ours, agree.torch_losses(plain, start, iter(batches)), atol=1e-4)
    assert ours[0] - ours[-1] > 0.3  # it has learned something to agree on
    with pytest.raises(UserError, match="expected the config of a Transformer language model"):
        agree.without_dropout(EXPERIMENTS["lstm"])
