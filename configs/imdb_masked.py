"""Pre-training for `imdb_transformer`: words hidden in the training reviews are guessed, their labels unseen.

Devlin, Chang, Lee & Toutanova 2019, "BERT" (arXiv:1810.04805), on 22,500 reviews. The test data are guessed at too, in
the end, to tell the loss; nothing is learnt from them.

    python -m experiments.train imdb_masked

Expected: not measured yet.
"""

from research.data.sentences import Sentences
from research.descend import Descent
from research.experiment import Run
from research.learners.masked import Masked
from research.nets.transformer import MaskedModel, Stack
from research.optim import Optimizer


def config() -> Masked:
    """The experiment."""
    return Masked(
        data=Sentences(name="imdb_reviews", vocabulary=20_000, lengths=(128, 256, 400), batch=64, validation=0.05),
        net=MaskedModel(Stack(layers=3, width=128, heads=4, positions="rotary", dropout=0.1)),
        optimizer=Optimizer(name="muon", learning_rate=5e-3, schedule="linear", warmup=200, weight_decay=0.1, b2=0.98),
        descent=Descent(clip=1.0),
        run=Run(steps=3600, chunk=20, evaluate_every=400, save_every=200, metric="loss", goal="min"),
    )
