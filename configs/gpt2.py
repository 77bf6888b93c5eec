"""GPT-2 of 124 M parameters, on any file of tokens: for its speed on a GPU.

Radford et al. 2019, "Language models are unsupervised multitask learners"; Karpathy's nanoGPT takes 135 ms an iteration
on an A100 at batch 12 of 1,024 tokens, compiled, in bfloat16.

    python -m experiments.train gpt2 --data.name tokens.npy

tokens.npy is one row of whole numbers below the vocabulary, as GPT-2's tokenizer or any other makes them. Batches are
gathered on the host from the file as it lies on the disk.

Measured on one H200: 438,000 tokens a second, 37.8 % of the card's peak, 1.04 times compiled PyTorch with a fused AdamW
(python -m experiments.benchmark gpt2). It has not been trained to its end.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.text import Text
from research.learners.language import Language
from research.nets.transformer import LanguageModel, Stack


def config() -> Language:
    """The experiment."""
    return Language(
        data=Text(
            name="tokens.npy",
            vocabulary=50304,
            context=1024,
            batch=8,
            evaluation_batch=8,
            validation=0.001,
            feed="host",
        ),
        net=LanguageModel(Stack(layers=12, width=768, heads=12, bias=False, scan_unroll=1, remat="dots")),
        loss_chunk=128,
        optimizer=Optimizer(learning_rate=6e-4, schedule="cosine", warmup=2000, weight_decay=0.1, b2=0.95),
        update=UpdateConfig(clip=1.0, dtype="bfloat16"),
        run=Run(steps=100_000, steps_per_dispatch=20, evaluate_every=1000, save_every=1000, metric="loss", mode="min"),
    )
