"""Input and output behind `p3s_prefect.core.ports`: ledger, store, pilots, arrivals."""
