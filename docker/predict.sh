#!/bin/sh
# serve <payload>: becomes the predict API once the first deployment has written the payload.
set -eu
payload=$1
if [ ! -e "$payload/predict.py" ]; then
    echo "waiting for $payload, which the first deployment writes"
    trap 'exit 0' TERM INT
    until [ -e "$payload/predict.py" ]; do sleep 0.5; done
fi
exec gunicorn -c "$payload/gunicorn.conf.py"
