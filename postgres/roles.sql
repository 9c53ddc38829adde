-- Roles and their passwords, set again at every start: to rotate a password, change it and restart.
-- The passwords come from psql's own environment, so that neither a command line nor a file shows
-- them. The role that runs this (`mlops`, made by initdb or by the image) owns everything.

\getenv grafana_password MLOPS_GRAFANA_DB_PASSWORD
\getenv mlflow_password MLOPS_MLFLOW_DB_PASSWORD
\getenv predict_password MLOPS_PREDICT_DB_PASSWORD

-- A statement that fails must not put a password into the server's log. (Only a superuser may ask
-- for that; managed servers have none, and keep their own logs.)
SELECT set_config(name, value, false)
FROM (VALUES ('log_min_error_statement', 'panic'), ('log_statement', 'none')) AS quiet (name, value)
WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
\g /dev/null

SELECT format('CREATE ROLE %I', role)
FROM unnest(ARRAY['grafana', 'mlflow', 'predict']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role)
\gexec

ALTER ROLE grafana
    LOGIN CONNECTION LIMIT 30 PASSWORD :'grafana_password';
ALTER ROLE mlflow
    LOGIN CONNECTION LIMIT 60 PASSWORD :'mlflow_password';
ALTER ROLE predict
    LOGIN CONNECTION LIMIT 30 PASSWORD :'predict_password';

-- Belt and braces: grants decide what the panels' role may do; this also stops a heavy query.
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '30s';
ALTER ROLE predict SET statement_timeout = '30s';

-- An owner that is no superuser grants what lies in a role's own tables as its member.
SELECT format('GRANT mlflow TO %I', current_user)
WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
\gexec

SELECT set_config(name, reset_val, false)
FROM pg_settings
WHERE name IN ('log_min_error_statement', 'log_statement')
  AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
\g /dev/null
