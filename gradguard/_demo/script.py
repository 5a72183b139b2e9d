"""The demo's fault as a script of its own: what its last part runs unedited under `run`."""

import torch

from gradguard._demo.model import FaultyTraining


def main() -> None:
    """Train, with nothing that watches."""
    torch.set_num_threads(1)  # as in the demo itself
    for _ in FaultyTraining().run(lambda: None):
        pass


if __name__ == "__main__":
    main()
