"""How the bundled graphs are laid out: a table, the arithmetic, and the measuring in a page."""
