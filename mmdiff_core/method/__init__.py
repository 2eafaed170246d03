"""The paper: subjects, their tokens and words, and the attention that shows them. Pure torch: knows
no host."""
