"""The rank of this process, which every message carries while a process group is initialized."""

from torch import distributed


def rank() -> tuple[int, int] | None:
    """Return the rank in the default process group and its size; None where there is none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def with_rank(message: str) -> str:
    """Put the rank before a message: ``rank 1 of 4: …``."""
    ours = rank()
    return message if ours is None else f"rank {ours[0]} of {ours[1]}: {message}"
