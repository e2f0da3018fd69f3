"""The storage drivers that come with layerfs, one module each; an entry point of ``layerfs.drivers`` names each."""
