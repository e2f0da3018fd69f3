"""Damage of a store: found by `layerfs.checking.examine`, mended by `layerfs.checking.repair`."""
