"""Errors of huggingface_hub, the client of the Hugging Face hub."""


def client_errors() -> tuple[type[Exception], ...]:
    """Return the classes of what the client raises: its own, those of HTTP, and those of the disk."""
    from huggingface_hub import errors

    own = (x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, Exception))
    return (OSError, *own)
