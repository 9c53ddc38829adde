-- Brings a server to what the project needs: roles, databases, tables, rights. Idempotent, on an
-- empty server as on one with data. The embedded stack and a postgres image run it alike:
--
--   MLOPS_GRAFANA_DB_PASSWORD=... MLOPS_PREDICT_DB_PASSWORD=... MLOPS_MLFLOW_DB_PASSWORD=... \
--       PGUSER=mlops PGPASSWORD=... psql -X -q -v ON_ERROR_STOP=1 -d postgres -f postgres/migrate.sql

\set ON_ERROR_STOP on
SET client_min_messages = warning;

\ir roles.sql
\ir databases.sql

\connect mlflow
SET client_min_messages = warning;
\ir mlflow.sql
\ir reading.sql

\connect mage
SET client_min_messages = warning;
\ir reading.sql

\connect mlops
SET client_min_messages = warning;
BEGIN;
\ir tables.sql
COMMIT;
