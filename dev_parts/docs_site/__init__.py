"""How the documentation site is made: its own pages in docs/, and the texts of the repository that
it publishes or includes. No text is kept twice.
"""
