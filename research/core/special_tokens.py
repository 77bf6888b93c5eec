"""The special tokens of sequences, the same for data, nets and decoding."""

PAD, BOS, EOS, UNKNOWN, MASK = range(5)
"""The special tokens' ids: padding, beginning and end of a sequence, an unknown word, a masked token."""

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unknown>", "<mask>")
"""Their names, in that order. The same letters met in a text are text."""
