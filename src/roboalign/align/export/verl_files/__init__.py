"""Files that are copied unchanged into an export for verl and EasyR1."""
