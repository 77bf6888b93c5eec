"""What a script has printed."""


def said(capsys):
    """All that was printed, without line breaks."""
    out = capsys.readouterr()
    return " ".join((out.out + out.err).split())
