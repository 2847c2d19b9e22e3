"""Files -> arrays, and back: cases, prepared cases, scans and their prompts.

A path enters; a Case, a Scan or plain arrays leave, checked. Nothing here knows a network.
"""
