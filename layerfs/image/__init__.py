"""Container images as files: digests, manifests, configurations, and the archives that carry them."""
