"""How the network learns: samples, the steps of both recipes, an epoch, and the state of a run.

Prepared cases and options enter; checkpoints and a log leave.
"""
