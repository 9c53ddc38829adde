# The predict API for payloads that come and go: it runs whatever payloads/current names, and swaps
# when that changes. Only what the payload itself requires is installed: no sklearn, MLflow, pandas,
# and nothing of this project. (One payload in an image of its own: its predict.dockerfile.)
FROM python:3.11-slim-bookworm AS packages

COPY mlops/serving/templates/requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /srv/predict \
    && pip --python /srv/predict/bin/python install --disable-pip-version-check \
    --root-user-action=ignore --no-deps -r /tmp/requirements.txt


FROM python:3.11-slim-bookworm

# As in service.dockerfile: the same user, and folders that a new volume takes its owner from.
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlops \
    && install -d -o mlops -g mlops -m 750 /var/lib/mlops \
    && install -d -o mlops -g mlops -m 755 /srv/mlops/payloads
COPY --from=packages /srv/predict /srv/predict
COPY docker/healthy.sh /usr/local/bin/healthy
COPY docker/predict.sh /usr/local/bin/serve
RUN chmod 755 /usr/local/bin/healthy /usr/local/bin/serve

ENV PATH=/srv/predict/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    MLOPS_HOST=0.0.0.0 \
    MLOPS_STATE_DIR=/var/lib/mlops
LABEL org.opencontainers.image.title="mlops predict" \
    org.opencontainers.image.licenses="MIT"
WORKDIR /srv/mlops
USER mlops
ENTRYPOINT ["serve"]
CMD ["/srv/mlops/payloads/current"]
