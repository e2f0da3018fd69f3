"""The FUSE union file system of layerfs, and the driver that mounts it."""
