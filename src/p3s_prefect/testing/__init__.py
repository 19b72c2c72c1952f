"""Fakes and the virtual-time simulator: shipped for tests and studies, never imported at run time."""
