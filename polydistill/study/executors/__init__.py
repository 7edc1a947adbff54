"""Where the runs of a study are executed: this machine's cores, a Ray cluster, Slurm's queue, behind one interface."""
