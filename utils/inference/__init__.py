"""A case -> its labels: checkpoints are loaded, a policy is chosen, previews are drawn.

A Case enters; (D, H, W) uint8 labels leave.
"""
