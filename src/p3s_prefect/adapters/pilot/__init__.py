"""The pilot: runs one stage at a time in a payload process that can be killed, and leaves its outputs in the store."""
