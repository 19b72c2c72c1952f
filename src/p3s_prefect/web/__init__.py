"""The station's HTTP face: see `p3s_prefect.web.app`."""
