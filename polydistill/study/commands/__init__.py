"""What the script and the console command call: a ``main`` that takes the words of a command line."""
