"""One form for every script: a YAML file and the command line give a frozen dataclass."""
