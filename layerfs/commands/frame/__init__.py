"""What the verbs have in common: global options, output, errors, progress, and finding the verbs themselves."""
