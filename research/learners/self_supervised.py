"""What learners of features without labels have in common: the report on the features, and their export."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import jax

from research.core.errors import UserError, positive
from research.core.experiment import Inference, Load, Report, Run
from research.core.state import State
from research.data.images import Images
from research.evaluation.representations import representation
from research.learners.supervised import Supervised, pixel_inference


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(Supervised):
    """An experiment in learning features without labels. Labels are read by its report alone.

    Attributes:
        data: the images
        probe_labels: numbers of labelled images that linear classifiers are trained on in the report, each a multiple
            of the number of classes
        report_every: steps between reports on the features during training; by default there is one, at the end
    """

    data: Images = field(default_factory=Images)
    probe_labels: tuple[int, ...] = (500,)
    report_every: int | None = None
    run: Run = field(default_factory=lambda: Run(metric="loss", mode="min"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantization is not None:
            raise UserError(
                "quantization is for nets that learn from labels: leave it out here, and give it in fine-tuning"
            )
        positive(self, "", "probe_labels")
        self.run.check_interval("report_every", self.report_every)

    @abstractmethod
    def features(self, state: State, images: jax.Array) -> jax.Array:
        """The features [batch, n] of u8[batch, height, width, channels], as they are evaluated."""

    @abstractmethod
    def pictures(self) -> Report:
        """The report that shows what is learned on."""

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return self.pictures(), representation(self.features, self.data, self.probe_labels, self.report_every)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        return pixel_inference(lambda images: self.features(state, images), "features")
