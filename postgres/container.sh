#!/bin/bash
# The entry of the postgres container: runs the image's own entry, brings the server to what the
# project needs (migrate.sql) at every start, and leaves $MIGRATED as the sign that it has. If that
# fails the server stops, and the reason is the last thing in the log.
#
#   container.sh postgres [options]
#
# Passwords come from the environment and go by it: no command line shows one.
set -u
here=$(dirname "$0")
MIGRATED=/run/postgresql/migrated
rm -f "$MIGRATED"

docker-entrypoint.sh "$@" &
server=$!
# Fast shutdown: SIGTERM would wait for every client to leave.
trap 'kill -INT $server 2>/dev/null' INT TERM

# While the image makes a new database, its server listens on a socket only: TCP means the real one.
until pg_isready -q -h 127.0.0.1; do
    kill -0 $server 2>/dev/null || { wait $server; exit; }
    sleep 0.2
done

migrate() {
    # Over the socket, where the image trusts: the owner's password may have changed in .env.
    PGHOST=/run/postgresql PGUSER=$POSTGRES_USER PGPASSWORD=$POSTGRES_PASSWORD PGOPTIONS= \
        psql -X -q -w -v ON_ERROR_STOP=1 -d postgres -f - <<SQL
SET log_min_error_statement = panic;
SET log_statement = none;
\getenv password POSTGRES_PASSWORD
ALTER ROLE CURRENT_USER PASSWORD :'password';
\i $here/migrate.sql
SQL
}

if ! reason=$(migrate 2>&1); then
    kill -INT $server
    wait $server
    echo "container.sh: migrate.sql failed, the server was stopped: $reason" >&2
    exit 1
fi
touch "$MIGRATED"
echo "container.sh: migrated${reason:+, with warnings: $reason}"

while :; do
    wait $server
    code=$?
    # A signal ends `wait` before the server has ended.
    kill -0 $server 2>/dev/null || exit $code
done
