"""What layerfs asks of the Linux kernel: system calls, mounts, user namespaces and loop devices."""
