"""Tests that ship with layerfs: what every driver, ours or somebody else's, has to pass."""
