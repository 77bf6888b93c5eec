"""Tiny Shakespeare by a character LSTM.

After Karpathy's char-rnn (2015): LSTMs of 2 or 3 layers with dropout. It states no figure for this text; its README's
example of a file name has a validation loss of 1.3950 nats per character; no other figure for this split was found.
`test` is the last tenth of the text, read 1,000 characters at a time, each time from a zero state.

    python -m experiments.train shakespeare_lstm

Expected: a test loss below 1.55.
Measured: 1.548; one seed.
Time: 21 minutes on one core, beside other work.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.text import Text
from research.learners.language import Language
from research.nets.lstm import LanguageModel


def config() -> Language:
    """The experiment."""
    return Language(
        data=Text(
            name="tiny_shakespeare", context=96, evaluation_context=1000, batch=64, evaluation_batch=16, validation=0.02
        ),
        net=LanguageModel(layers=2, width=256, embedding=64, dropout=0.15),
        optimizer=Optimizer(name="muon", learning_rate=5e-3, schedule="linear", warmup=50, weight_decay=0.05, b2=0.99),
        update=UpdateConfig(clip=1.0),
        run=Run(steps=1800, steps_per_dispatch=25, evaluate_every=250, save_every=250, metric="loss", mode="min"),
    )
