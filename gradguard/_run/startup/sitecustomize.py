"""Follows `gradguard run` into an interpreter that the program has started.

Any Python may come by here, also one without gradguard or torch, for which all must be as if
nothing were: so plain syntax, and nothing is done where gradguard cannot be imported. The
``sitecustomize`` that this one hides is imported after it.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_ours = sys.modules.pop(__name__, None)
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _here]

try:
    __import__("sitecustomize")  # the next one along the path
except ImportError:
    if _ours is not None:
        sys.modules[__name__] = _ours

try:
    from gradguard._run.children import follow
except ImportError:  # there is no gradguard here
    pass
else:
    follow()
