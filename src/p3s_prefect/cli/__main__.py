"""`python -m p3s_prefect.cli`, for services that are started without a PATH."""

from p3s_prefect.cli import app

app()
