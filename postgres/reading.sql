-- What the role `grafana` reads in the databases that MLflow and Mage fill themselves: every table,
-- also those they create later, but none that keeps credentials.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO grafana;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO grafana;
