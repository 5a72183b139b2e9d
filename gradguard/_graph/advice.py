"""What to do, where several messages about parameters end with the same advice."""

OUTSIDE = (
    "make the module, and run its first forward (lazy modules), .to(), deepcopy and "
    "load_state_dict(assign=True), outside inference mode. copy.deepcopy(module) outside it "
    "makes a copy that can be trained; give the optimizer the copy's parameters."
)
FIND = (
    "`with gradguard.trace() as switches:` around the forward, then print(switches), or "
    "`python -m gradguard run SCRIPT`, lists each switch of the mode with its line."
)
