"""The merged view of a stack of layers as one mapped file, from which a union answers without asking the layers."""
