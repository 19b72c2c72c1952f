"""p3s-prefect: processes detector data while they still matter, and keeps exact books of every unit."""

__version__ = "0.1.0"
