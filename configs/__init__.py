"""One file an experiment, named DATA_MODEL; its `config()` makes the typed value."""
