"""The sub-commands of ``layerfs``, one module per verb."""
