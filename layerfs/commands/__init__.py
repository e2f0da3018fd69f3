"""The sub-commands, one module a verb; this package's own file is the table that `layerfs --help` is printed from.

A *verb* is a leaf of the command, a *group* holds verbs. Each module below has one of them, named ``command``, and each
is an entry point of ``layerfs.commands`` in pyproject.toml, where somebody else's package may add its own; those of
`layerfs bench` are in layerfs_bench, which the core never imports but by these names. The table
repeats names and short helps because loading every module for them would cost the start of the command more than all
else together; ``tests/command/test_frame.py`` holds table, entry points and modules together.
"""

from __future__ import annotations

from typing import NamedTuple


class Builtin(NamedTuple):
    """One verb or group of our own: its full name with dots, the section of the help, its short help, its module."""

    name: str
    section: str
    help: str
    module: str = ""
    """Where it is, if that does not follow from its name."""

    @property
    def target(self) -> str:
        """Return the object as an entry point names it."""
        return f"{self.module or 'layerfs.commands.' + self.name.replace('.', '_')}:command"


_IMAGES, _CLONES, _STORE, _HOST = "Images", "Clones", "Store", "This host"
_BENCH = "layerfs_bench.commands"

BUILTINS = (
    Builtin("image", _IMAGES, "Bring images in and out, and look at them."),
    Builtin("image.import", _IMAGES, "Import the images of an OCI layout or a docker archive."),
    Builtin("image.export", _IMAGES, "Write images to an OCI layout or a docker archive."),
    Builtin("image.pull", _IMAGES, "Pull an image from a registry."),
    Builtin("image.push", _IMAGES, "Push an image to a registry."),
    Builtin("image.ls", _IMAGES, "List the images."),
    Builtin("image.inspect", _IMAGES, "Show everything about an image."),
    Builtin("image.history", _IMAGES, "Show how an image was made, the newest step first."),
    Builtin("image.tree", _IMAGES, "Show the layers as a tree, and the images that end in each."),
    Builtin("image.tag", _IMAGES, "Give an image a further name."),
    Builtin("image.rm", _IMAGES, "Remove names of images, and images without a name."),
    Builtin("clone", _CLONES, "Make a writable clone of an image."),
    Builtin("fork", _CLONES, "Make a second clone that starts from the present state of a clone."),
    Builtin("snapshot", _CLONES, "Remember the present state of a clone."),
    Builtin("flatten", _CLONES, "Make files whole of which only changed blocks are stored."),
    Builtin("rollback", _CLONES, "Bring a clone back to a snapshot or to its image."),
    Builtin("diff", _CLONES, "List what a clone changed, or how two things differ."),
    Builtin("commit", _CLONES, "Make an image of a clone: what it changed becomes a new layer."),
    Builtin("quota", _CLONES, "Show what may be written to a clone, or change it."),
    Builtin("rm", _CLONES, "Remove clones with everything in them."),
    Builtin("mount", _CLONES, "Mount a clone."),
    Builtin("umount", _CLONES, "Unmount a clone everywhere."),
    Builtin("shell", _CLONES, "Run a shell or a command in a clone."),
    Builtin("run", _CLONES, "Run a container of an image or a clone."),
    Builtin("bundle", _CLONES, "Write an OCI runtime bundle of a clone."),
    Builtin("ls", _STORE, "List the clones."),
    Builtin("du", _STORE, "Show what images, clones and layers take on disk."),
    Builtin("owner", _STORE, "Tell whose a file, a mount or a device is."),
    Builtin("metrics", _STORE, "Print what the store takes and holds, as metrics."),
    Builtin("migrate", _STORE, "Carry images and clones to a store of another driver."),
    Builtin("prune", _STORE, "Show what nobody uses, and remove it with --force."),
    Builtin("lease", _STORE, "Keep what is being built from being pruned, for a time."),
    Builtin("lease.create", _STORE, "Make a lease."),
    Builtin("lease.ls", _STORE, "List the leases, and how many images, blobs and snapshots each names."),
    Builtin("lease.renew", _STORE, "Give leases more time."),
    Builtin("lease.rm", _STORE, "End leases."),
    Builtin("check", _STORE, "Look for what is gone or broken, and whom that hurts."),
    Builtin("repair", _STORE, "Show what could be done about what is wrong, and do it with --force."),
    Builtin("store", _STORE, "Make stores, and close those that live in a file of their own."),
    Builtin("store.create", _STORE, "Make a store, on request in a file with its own file system."),
    Builtin("store.close", _STORE, "Unmount a store that lives in a file, and take its devices from the kernel."),
    Builtin("serve", _HOST, "Serve containerd's snapshots service on a unix socket, until SIGTERM."),
    Builtin("doctor", _HOST, "Tell which drivers work here, and why the others do not."),
    Builtin("bench", _HOST, "Measure what each storage driver costs.", f"{_BENCH}.bench"),
    Builtin("bench.run", _HOST, "Measure the drivers of this machine.", f"{_BENCH}.run"),
    Builtin("bench.list", _HOST, "List the scenarios, cells and profiles.", f"{_BENCH}.list"),
    Builtin("bench.show", _HOST, "Show a result in the terminal: tables with ratios, and plots.", f"{_BENCH}.show"),
    Builtin("bench.report", _HOST, "Make a page with plots, or a CSV table, of a result.", f"{_BENCH}.report"),
    Builtin("bench.compare", _HOST, "Compare two results, and tell changes from noise.", f"{_BENCH}.compare"),
    Builtin("bench.verify-shape", _HOST, "Hold a result against published findings.", f"{_BENCH}.verify_shape"),
    Builtin("completion", _HOST, "Print the script that completes commands and names in a shell."),
)
