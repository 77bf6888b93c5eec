"""Multi30k, English to German, by an LSTM that attends to its encoder.

Luong, Pham & Manning 2015 (arXiv:1508.04025) in small; `--net.attention bahdanau` is Bahdanau, Cho & Bengio's 2015
(arXiv:1409.0473). bentrevett/pytorch-seq2seq has 28.3 BLEU with attention, German to English, another tokenisation.

    python -m experiments.train multi30k_lstm

Data: `git clone https://github.com/multi30k/dataset`, then `--data.name dataset/data/task1/raw`. The figures are from
these pairs as a set of TensorFlow Datasets, in another order.

Expected: at least 31 BLEU on test_2016_flickr (sacrebleu, cased, detokenised), beam 5.
Measured: 35.15 BLEU (brevity penalty 1.000); one seed, resumed once.
Time: 60 minutes on one core, beside much other work.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.pairs import Pairs
from research.learners.translate import Translate
from research.nets.lstm import Translator


def config() -> Translate:
    """The experiment."""
    return Translate(
        data=Pairs(name="multi30k", source="en", target="de", vocabulary=6000, batch=128, evaluation_batch=200),
        net=Translator(layers=1, width=256, attention="luong", dropout=0.4),
        smoothing=0.1,
        average=0.998,
        optimizer=Optimizer(learning_rate=2e-3, schedule="linear", warmup=100, weight_decay=0.01, b2=0.98),
        update=UpdateConfig(clip=1.0),
        run=Run(
            steps=2500,
            steps_per_dispatch=10,
            evaluate_every=500,
            save_every=250,
            metric="loss",
            mode="min",
            published=(("bleu", 28.3),),
        ),
    )
