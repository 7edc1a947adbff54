"""What the scripts and the console commands call: each module has a ``main`` that takes the words of a command line."""
