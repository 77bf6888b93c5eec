"""SST-2, sentences of film critics, positive or negative, by a small Transformer trained from scratch.

Socher et al. 2013, "Recursive deep models for semantic compositionality over a sentiment treebank": 85.4 %, with the
labels of every phrase besides. Here the 6,920 whole sentences alone.

    python -m experiments.train sst2_transformer --seeds 3

Data: `git clone https://github.com/clairett/pytorch-sentiment-classification`, then `--data.name
pytorch-sentiment-classification/data/SST2`. The figures are from these sentences as a set of TensorFlow Datasets, in
another order. `--data.name glue/sst2` is another task: 67,349 phrases, tested on the 872 sentences of its validation
split, because its test split has no labels.

Measured: an accuracy of 0.807 ± 0.005 (0.802 to 0.812) on the 1,821 test sentences, 3 seeds.
Time: 4 minutes for all 3 on one core, beside other work.
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
        data=Sentences(name="sst2", vocabulary=10_000, lengths=(16, 32, 56), batch=64),
        net=Classifier(Stack(layers=2, width=64, heads=4, positions="rotary", dropout=0.3), dropout=0.5),
        average=0.99,
        optimizer=Optimizer(learning_rate=1e-3, schedule="linear", warmup=50, weight_decay=0.1, b2=0.98),
        update=UpdateConfig(clip=1.0),
        run=Run(steps=600, steps_per_dispatch=20, evaluate_every=100, save_every=300, published=(("accuracy", 0.854),)),
    )
