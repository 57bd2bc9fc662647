"""The papers' grid: presets for ρ, every published cell, and the command that re-runs them."""
