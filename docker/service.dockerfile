# A server of the stack with one dependency group of uv.lock and nothing else:
#   docker build -f docker/service.dockerfile --build-arg GROUP=alerts .
# Groups: alerts (listener, evaluator), app (Streamlit), tracking (MLflow), and orchestrator (Mage)
# with ENVIRONMENT=.venv. What it runs is its argument: see mlops/stack/launch.py.
FROM python:3.11-slim-bookworm AS packages

COPY scripts/bootstrap.py /tmp/
# The version of uv stands in bootstrap.py, as for the stack without Docker.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --root-user-action=ignore \
    "uv==$(sed -n 's/^UV_VERSION = "\(.*\)"$/\1/p' /tmp/bootstrap.py)"

WORKDIR /srv/mlops
COPY pyproject.toml uv.lock ./
ARG GROUP
ARG ENVIRONMENT=.venv-services
# Compiled here, since nothing can be written beside the sources later.
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_PROJECT_ENVIRONMENT=/srv/mlops/$ENVIRONMENT UV_PYTHON=python3 UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1 \
    uv sync --frozen --no-default-groups --group "$GROUP" \
    # Their own test suites, which nothing imports, are up to a tenth of the image.
    && cd "$ENVIRONMENT"/lib/python3*/site-packages \
    && find . -type d -name tests -prune -regextype posix-extended \
    -regex '\./(numpy|pandas|pyarrow|scipy|sklearn|statsmodels)/(.*/)?tests' -exec rm -r {} +


FROM python:3.11-slim-bookworm

# Folders that volumes are mounted on belong to the user: a new volume takes over the owner.
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlops \
    && install -d -o mlops -g mlops -m 750 /var/lib/mlops /var/cache/mlops \
    && install -d -o mlops -g mlops -m 755 /srv/mlops/payloads /srv/mlops/reports

ARG GROUP
ARG ENVIRONMENT=.venv-services
COPY --from=packages /srv/mlops/$ENVIRONMENT /srv/mlops/$ENVIRONMENT
COPY docker/healthy.sh /usr/local/bin/healthy
COPY .streamlit /srv/mlops/.streamlit
COPY mlops /srv/mlops/mlops
# Readable whatever umask the clone was made with.
RUN chmod -R a+rX /srv/mlops/mlops /srv/mlops/.streamlit && chmod 755 /usr/local/bin/healthy \
    && /srv/mlops/$ENVIRONMENT/bin/python -m compileall -q /srv/mlops/mlops

ENV PATH=/srv/mlops/$ENVIRONMENT/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLOPS_HOST=0.0.0.0 \
    MLOPS_IN_CONTAINERS=true \
    MLOPS_STATE_DIR=/var/lib/mlops \
    MLOPS_CACHE_DIR=/var/cache/mlops
LABEL org.opencontainers.image.title="mlops $GROUP" \
    org.opencontainers.image.licenses="MIT"
WORKDIR /srv/mlops
USER mlops
ENTRYPOINT ["python", "-m", "mlops.stack.launch"]
