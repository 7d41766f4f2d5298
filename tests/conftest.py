"""What holds for all tests."""

from hypothesis import settings

# How long an example takes is the machine's affair: speed is measured, and never asserted.
settings.register_profile("connlab", deadline=None)
settings.load_profile("connlab")
