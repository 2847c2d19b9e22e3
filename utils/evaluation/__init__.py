"""How good a method is: the challenge's protocol, its prompts and metrics, and the report.

A LabelledCase and a method enter; rounds, scores and a report leave.
"""
