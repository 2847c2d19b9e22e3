"""How a viewer uses the network: the protocol of nnInteractive's clients, by HTTP.

Calls enter; changed regions of labels leave.
"""
