"""The data plane: one long-lived service a site that takes arrivals, decides, and hands out work. No Prefect."""
