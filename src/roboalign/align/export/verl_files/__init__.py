"""Files that go with an export for verl and EasyR1 as they stand."""
