"""Seals: what a committed snapshot holds, as an inventory of its files and one digest of it."""
