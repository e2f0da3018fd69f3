"""What `bench/layers.py` is made of: inputs, places to unpack to, the tools that are compared, and their measuring."""
