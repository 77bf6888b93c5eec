"""IMDb's film reviews, positive or negative, by a Transformer trained from scratch.

Maas et al. 2011, "Learning word vectors for sentiment analysis". bentrevett/pytorch-sentiment-analysis has .933 by
BERT, which was pre-trained on far more text. For pre-training on the reviews alone, see `imdb_lstm`.

    python -m experiments.train imdb_transformer

Expected: not measured yet.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.sentences import Sentences
from research.learners.sentences import ClassifyText
from research.nets.transformer import Classifier, Stack


def config() -> ClassifyText:
    """The experiment."""
    return ClassifyText(
        data=Sentences(name="imdb_reviews", vocabulary=20_000, lengths=(128, 256, 400), batch=64, validation=0.05),
        net=Classifier(Stack(layers=3, width=128, heads=4, positions="rotary", dropout=0.1), dropout=0.3),
        average=0.998,
        optimizer=Optimizer(learning_rate=5e-4, schedule="linear", warmup=100, weight_decay=0.01, b2=0.98),
        update=UpdateConfig(clip=1.0),
        run=Run(
            steps=1100, steps_per_dispatch=20, evaluate_every=220, save_every=220, published=(("accuracy", 0.933),)
        ),
    )
