"""The layer engine: apply (tar to directory) and diff (directory to tar)."""
