"""Registries: images from and to what speaks the distribution specification, over HTTP.

A *registry* is a host, a *repository* a name on it that holds blobs and manifests (distribution-spec). urllib3 is what
speaks HTTP here; nothing outside this package knows of it.
"""
