"""Checks of a tier's `params`: new names, removed members and efforts."""

from collections.abc import Iterator

from extproc.mismatch import shown
from extproc.routing.tier_form import form_of
from extproc.settings import Tier

# No request is valid without these members.
_NEEDED = ("model", "messages", "input", "prompt")


def check_params(at: str, tier: Tier) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each mistake. `at` is the tier's place."""
    params, at = tier.params, f"{at}.params"
    for kind, names in (("rename", tuple(params.rename)), ("drop", params.drop)):
        for name in names:
            if name in _NEEDED:
                yield f"{at}.{kind}", f"`{kind}` names `{name}`, which every request needs: remove it"
            elif not name.strip():
                yield f"{at}.{kind}", f"`{kind}` has an empty name: write the name of a request member"
    new_names = list(params.rename.values())
    for name in dict.fromkeys(n for n in new_names if new_names.count(n) > 1):
        yield f"{at}.rename", f"`rename` gives two members the name {shown(name)}: a request can have only one"
    fields = form_of(tier.reasoning, tier.model).apis.values()
    if params.effort.words and not any(field.effort for field in fields):
        what = (
            f"`effort` has no effect, because dialect `{tier.reasoning}` writes no effort for {tier.model}: "
            "remove it, or choose another `reasoning`"
        )
        yield f"{at}.effort", what
