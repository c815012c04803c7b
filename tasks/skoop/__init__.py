"""The diagnosis: from a collected network to a verdict, its cause and its remedy."""
