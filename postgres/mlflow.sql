-- MLflow's server faces people and has a role of its own: it owns what lies in its database, and
-- reaches no other. Tables that an earlier version of the stack has made become its own.

BEGIN;

GRANT USAGE, CREATE ON SCHEMA public TO mlflow;

SELECT format('ALTER %s public.%I OWNER TO mlflow',
              CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, relname)
FROM pg_class
WHERE relnamespace = 'public'::regnamespace
  AND relkind IN ('r', 'p', 'S')
  AND relowner <> 'mlflow'::regrole
  -- A serial column's sequence goes with its table.
  AND NOT EXISTS (
      SELECT FROM pg_depend
      WHERE objid = pg_class.oid AND classid = 'pg_class'::regclass AND deptype IN ('a', 'i')
  )
\gexec

COMMIT;
