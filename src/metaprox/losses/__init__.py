"""How a user's losses are evaluated at T x B points: coupled, counted, one by one, at once or compiled."""
