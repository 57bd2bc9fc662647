"""Processes: how one starts, finds the others of its cluster, hears signals, and ends."""
