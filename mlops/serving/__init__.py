"""From a registered version to a served payload, and the traffic it answers."""
