"""Every text a user can see, one module a topic.

The functions here only build strings: they read no mode, raise nothing and import no torch, so a
test can compare each part of a message and the pytest plugin can use them without torch.
"""
