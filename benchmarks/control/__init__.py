"""How fast Prefect reaches the station, and how soon the record is complete, beside what Prefect has by itself."""
