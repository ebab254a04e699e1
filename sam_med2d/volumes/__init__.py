"""Scans in and out, and objects carried through them."""
