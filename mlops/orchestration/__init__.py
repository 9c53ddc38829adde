"""Client of Mage's API; the only place that knows how a pipeline is started from outside."""
