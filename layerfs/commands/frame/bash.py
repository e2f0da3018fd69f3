"""Completion in bash of words with colons, such as "debian:12".

bash breaks words at colons (``COMP_WORDBREAKS``) and replaces only the part behind the last one, so click's own class
would complete "12" on its own. Here the parts are joined before completion, and what stands before the last colon is
taken off the answers, as bash-completion's ``__ltrim_colon_completions`` does.
"""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string


class ColonBashComplete(BashComplete):
    """Complete in bash with the words as the user typed them."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one at the cursor, and that one; the variables come from the script."""
        words = os.environ["COMP_WORDS"].split("\n")  # the script joins them so
        index = int(os.environ["COMP_CWORD"])
        *before, current = join_colons(words[1 : index + 1]) or [""]
        return split_arg_string("\n".join(before)), "".join(split_arg_string(current))

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return the completions of the part behind the last colon."""
        found = super().get_completions(args, incomplete)
        known = incomplete.rpartition(":")[0] + ":" if ":" in incomplete else ""
        return [
            CompletionItem(item.value.removeprefix(known), item.type, item.help)
            if item.value.startswith(known)
            else item
            for item in found
        ]


def join_colons(words: list[str]) -> list[str]:
    """Put together what bash took apart at colons: ``a``, ``:``, ``b`` was ``a:b``."""
    joined: list[str] = []
    for word in words:
        if joined and (word.startswith(":") or joined[-1].endswith(":")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def register() -> None:
    """Take the place of click's class for bash."""
    add_completion_class(ColonBashComplete, "bash")
