"""What the devicemapper driver stands on: the ledger of its devices, and the thin pool in which they live."""
