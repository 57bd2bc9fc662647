"""Runs of several processes against runs of one: results, speed, faults, memory and traffic."""
