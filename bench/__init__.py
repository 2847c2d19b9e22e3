"""Figures: what the program costs beside others, on the machine at hand, as tables in Markdown."""
