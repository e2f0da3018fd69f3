"""The verbs of `layerfs bench`, one module each, as those of the core are (`layerfs.commands`)."""
