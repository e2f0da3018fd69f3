"""Migration: images, clones and snapshots of one store carried to another, of whatever driver, and compared there.

What a snapshot holds beyond its parent is carried, never the whole tree, so that the target shares what the source
does.
"""
