-- Roles and their passwords, set again at every start: to rotate a password, change it and restart.
-- The passwords come from psql's own environment, so that neither a command line nor a file shows
-- them. The role that runs this (`mlops`, made by initdb or by the image) owns everything.

\getenv grafana_password MLOPS_GRAFANA_DB_PASSWORD
\getenv mlflow_password MLOPS_MLFLOW_DB_PASSWORD
\getenv predict_password MLOPS_PREDICT_DB_PASSWORD

-- A statement that fails must not put a password into the server's log.
SET log_min_error_statement = panic;
SET log_statement = none;

SELECT format('CREATE ROLE %I', role)
FROM unnest(ARRAY['grafana', 'mlflow', 'predict']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role)
\gexec

ALTER ROLE grafana
    LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 30 PASSWORD :'grafana_password';
ALTER ROLE mlflow
    LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 60 PASSWORD :'mlflow_password';
ALTER ROLE predict
    LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 30 PASSWORD :'predict_password';

-- Belt and braces: grants decide what the panels' role may do; this also stops a heavy query.
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '30s';
ALTER ROLE predict SET statement_timeout = '30s';

RESET log_min_error_statement;
RESET log_statement;
