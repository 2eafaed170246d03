"""The method of MM-Diff (arXiv 2403.15059): subjects, their tokens and words, the attention that
shows them, and the losses. Pure torch: knows no host.
"""
