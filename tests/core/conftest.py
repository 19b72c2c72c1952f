"""Settings of the property tests."""

from hypothesis import settings

# On a shared machine an example may take long by chance; what must be fast is measured in benchmarks.
settings.register_profile("core", deadline=None)
settings.load_profile("core")
