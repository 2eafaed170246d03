"""Files: adapters in both layouts, with the released layout's names as tables, and saved
subjects."""
