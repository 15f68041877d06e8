"""Bulk jobs: every record of an input answered once, a line each, whatever interrupts it."""
