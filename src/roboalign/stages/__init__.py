"""What each stage of a run reads, does and writes. `plan.py` puts them in order for a recipe."""
