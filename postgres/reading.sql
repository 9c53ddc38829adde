-- What the role `grafana` reads in the databases that MLflow and Mage fill themselves: every table,
-- also those they create later, but no column that keeps a credential. Those are hidden as soon as
-- this runs with the tables there: the stack runs it before Mage and MLflow start, and again when
-- they are up.

BEGIN;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO grafana;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO grafana;

-- A right on a table covers all its columns, so it is taken back and given for the others.
WITH columns AS (
    SELECT
        table_name,
        column_name,
        column_name IN (
            'token', 'refresh_token', 'token_hash', 'password_hash', 'password_salt',
            'secret', 'encrypted_value', 'wrapped_dek', 'auth_config'
        ) OR (table_name, column_name) = ('secret', 'value') AS is_credential
    FROM information_schema.columns
    WHERE table_schema = 'public'
)
SELECT format(
    'REVOKE SELECT ON public.%1$I FROM grafana; GRANT SELECT (%2$s) ON public.%1$I TO grafana',
    table_name,
    string_agg(quote_ident(column_name), ', ') FILTER (WHERE NOT is_credential))
FROM columns
GROUP BY table_name
HAVING bool_or(is_credential)
\gexec

COMMIT;
