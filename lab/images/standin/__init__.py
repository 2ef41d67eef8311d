"""Stand-ins for the platform's services: the same routes, answers and habits on the wire, none of its product."""
