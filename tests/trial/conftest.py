"""A served policy is the same here as in the tests of serving."""
