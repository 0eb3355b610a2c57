"""Property tests here: fewer examples than usual, and no time limit for each, for the machine may be busy."""

from hypothesis import settings

settings.register_profile("patient", deadline=None, max_examples=50)
settings.load_profile("patient")
