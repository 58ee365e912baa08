"""protocols: the field's published ways to score a method, so that numbers can be compared."""
