-- What the role `grafana` reads in the databases that MLflow and Mage fill themselves: every table,
-- but no column that keeps a credential. An event trigger holds it for tables that they make or
-- change later, in the same transaction, so that there is no moment in which one could be read.

BEGIN;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO grafana;

CREATE SCHEMA IF NOT EXISTS reading;
REVOKE ALL ON SCHEMA reading FROM PUBLIC;
GRANT USAGE ON SCHEMA reading TO PUBLIC; -- whoever makes a table runs the trigger's function

CREATE OR REPLACE FUNCTION reading.let_grafana_read(wanted oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    harmless text;
    credentials bigint;
BEGIN
    SELECT
        string_agg(quote_ident(attname), ', ') FILTER (WHERE NOT is_credential),
        count(*) FILTER (WHERE is_credential)
    INTO harmless, credentials
    FROM (
        SELECT
            attname,
            attname IN (
                'token', 'refresh_token', 'token_hash', 'password_hash', 'password_salt',
                'secret', 'encrypted_value', 'wrapped_dek', 'auth_config'
            ) OR (relname, attname) = ('secret', 'value') AS is_credential
        FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid
        WHERE attrelid = wanted AND attnum > 0 AND NOT attisdropped
    ) AS columns;
    EXECUTE format('REVOKE ALL ON %s FROM grafana', wanted::regclass);
    IF credentials = 0 THEN
        EXECUTE format('GRANT SELECT ON %s TO grafana', wanted::regclass);
    ELSIF harmless IS NOT NULL THEN
        EXECUTE format('GRANT SELECT (%s) ON %s TO grafana', harmless, wanted::regclass);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION reading.after_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM reading.let_grafana_read(pg_class.oid)
    FROM pg_event_trigger_ddl_commands() AS command
    JOIN pg_class ON pg_class.oid = command.objid AND command.classid = 'pg_class'::regclass
    WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p', 'v', 'm', 'f');
END
$$;

-- A server that lets nobody make event triggers (some managed ones) warns: there tables become
-- readable when this runs again, with the next start of the stack.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'let_grafana_read') THEN
        CREATE EVENT TRIGGER let_grafana_read ON ddl_command_end
            WHEN TAG IN (
                'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE VIEW',
                'CREATE MATERIALIZED VIEW', 'CREATE FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA'
            )
            EXECUTE FUNCTION reading.after_ddl();
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'no event trigger may be made here: new tables are read after the next start';
END
$$;

DO $$
BEGIN
    PERFORM reading.let_grafana_read(oid)
    FROM pg_class
    WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p', 'v', 'm', 'f');
END
$$;

COMMIT;
