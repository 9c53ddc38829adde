-- One database each for the project, MLflow's backend and Mage's own tables. Who may connect is
-- named; nobody gets in because of PUBLIC.

SELECT format(
    'CREATE DATABASE %I TEMPLATE template0 ENCODING ''UTF8'' LC_COLLATE ''C'' LC_CTYPE ''C''', name)
FROM unnest(ARRAY['mlops', 'mlflow', 'mage']) AS name
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name)
\gexec

REVOKE ALL ON DATABASE mlops, mlflow, mage FROM PUBLIC;
GRANT CONNECT ON DATABASE mlops, mlflow, mage TO grafana;
GRANT CONNECT ON DATABASE mlflow TO mlflow;
GRANT CONNECT ON DATABASE mlops TO predict;
