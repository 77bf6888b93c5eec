"""What experiments in generating images have in common: how their samples are evaluated."""

from dataclasses import dataclass, field

from research.core.errors import UserError, positive
from research.core.experiment import Experiment
from research.data.images import Images


@dataclass(frozen=True, kw_only=True)
class EvaluatedByClassifier(Experiment):
    """An experiment whose generated images a trained classifier evaluates, where `classifier_dir` names one.

    Attributes:
        classifier_dir: directory of a finished run of an image classifier, which evaluates the generated images
        classifier_hash: hash of that classifier's weights (or its first digits), as sample_metrics.json states it;
            a classifier with other weights is refused
        sample_metrics_every: steps between evaluations of the sample metrics during training; by default they are
            computed once, at the end
    """

    classifier_dir: str | None = None
    classifier_hash: str | None = None
    sample_metrics_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier_hash is not None and self.classifier_dir is None:
            raise UserError("classifier_hash is of the weights of a classifier: give classifier_dir too")
        self.run.check_interval("sample_metrics_every", self.sample_metrics_every)


@dataclass(frozen=True, kw_only=True)
class Generative(EvaluatedByClassifier):
    """An experiment in making images of noise: what `evaluation.samples.reports` reads.

    Attributes:
        data: the images
        conditional: whether the nets read labels; a sample has the label of the image at its place in the batch
        inception: path of an .npz file of Inception-v3's weights, see research/evaluation/inception.py, for the
            Inception FID
        num_samples: samples that the sample metrics (FID, ...) are computed on; more than the features that the
            classifier or Inception has
    """

    data: Images = field(default_factory=Images)
    conditional: bool = False
    inception: str | None = None
    num_samples: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "num_samples")
        if self.sample_metrics_every is not None and self.classifier_dir is None and self.inception is None:
            raise UserError("sample_metrics_every needs classifier_dir or inception, which evaluates the samples")
