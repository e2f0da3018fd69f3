"""What `bench/union.py` is made of: layered trees, the file systems compared, works, report."""
