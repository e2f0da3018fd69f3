"""Layered storage for containers: images from layers, writable roots from images, on pluggable snapshot drivers."""
