"""From any source to the layout that train.py reads."""
