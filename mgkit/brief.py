"""Values in error messages: on one line, and short, whatever a caller gave."""


def brief(value: object, limit: int = 80) -> str:
    """The value's `repr` without line breaks, cut at about `limit` characters.

    >>> brief({"calm": 1})
    "{'calm': 1}"
    >>> brief("la " * 99, limit=12)
    "'la la la la …"
    """
    try:
        text = " ".join(repr(value).split())
    # an integer of more than 4300 digits has no repr, nor has a broken object
    except Exception:
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit].rstrip()} …"
