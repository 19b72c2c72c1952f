"""The ledger: tables, migrations, and the functions that write and read them inside one transaction."""
