"""Pre-training for `imdb_lstm`: the LSTM predicts masked words of the training reviews, without their labels.

As Devlin, Chang, Lee & Toutanova 2019, "BERT" (arXiv:1810.04805), with an LSTM, on 23,750 reviews. The loss on
the test data is computed once, at the end.

    python -m experiments.train imdb_masked

Measured: 0.413 of the masked words of test reviews are predicted correctly, loss 3.242; one seed. All
words outside the vocabulary count as one and the same.
Time: 43 minutes on one core, beside other work.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.sentences import Sentences
from research.learners.masked import Masked
from research.nets.lstm import MaskedModel


def config() -> Masked:
    """The experiment."""
    return Masked(
        data=Sentences(name="imdb_reviews", vocabulary=30_000, lengths=(128, 256, 400), batch=64, validation=0.05),
        net=MaskedModel(layers=1, width=256, embedding=128, dropout=0.1),
        predicted_tokens=6000,
        optimizer=Optimizer(learning_rate=3e-3, schedule="linear", warmup=100, b2=0.98),
        update=UpdateConfig(clip=1.0),
        run=Run(steps=3600, steps_per_dispatch=20, evaluate_every=400, save_every=200, metric="loss", mode="min"),
    )
