"""What dev.py is made of: only the standard library, Python 3.10 or newer."""
