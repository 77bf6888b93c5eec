"""IMDb's film reviews, positive or negative, by a bidirectional LSTM pre-trained by `imdb_masked`, and a bag of words.

Maas et al. 2011, "Learning word vectors for sentiment analysis": 25,000 reviews to train on, 25,000 to test on. Beside
the LSTM stands a bag of words and bigrams; each of the two has a loss of its own, and their mean logits predict.
bentrevett/pytorch-sentiment-analysis has .862 by a bidirectional LSTM, .875 by a CNN.

    python -m experiments.train imdb_masked
    python -m experiments.train imdb_lstm --init-from runs/imdb_masked

Expected: a test accuracy of at least 0.901, from the labelled reviews alone.
Measured: 0.908; one seed. Its bag alone: 0.898. The LSTM alone, `--net.bigram-buckets 0 --run.steps 1800`: 0.891. The
setting was chosen by a script on training reviews of films held out (0.910 there; with one loss for both
0.903). On the 1,250 training reviews held out here it has 0.916: they share films with those that it was trained on.
Time: 13 minutes on one core, beside other work, after 43 for `imdb_masked`.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.sentences import Sentences
from research.learners.sentences import ClassifyText
from research.nets.lstm import Classifier


def config() -> ClassifyText:
    """The experiment."""
    return ClassifyText(
        data=Sentences(name="imdb_reviews", vocabulary=30_000, lengths=(128, 256, 400), batch=64, validation=0.05),
        net=Classifier(
            layers=1, width=256, embedding=128, word_dropout=0.2, dropout=0.5, bigram_buckets=2**18, bag_dropout=0.6
        ),
        smoothing=0.1,
        average=0.99,
        optimizer=Optimizer(learning_rate=2e-3, schedule="linear", warmup=50, weight_decay=0.1, b2=0.99),
        update=UpdateConfig(clip=1.0),
        run=Run(steps=1000, steps_per_dispatch=20, evaluate_every=200, save_every=200),
    )
