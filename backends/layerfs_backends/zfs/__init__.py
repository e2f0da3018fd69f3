"""The ZFS driver: `layerfs_backends.zfs.driver`, and the library below it."""
