# The predict API alone: the model, its runtime and a web server; no sklearn, MLflow or pandas.
#   docker build -t predict:v1 -f payloads/current/predict.dockerfile payloads/current
#   docker run --rm -p 127.0.0.1:9696:9696 predict:v1
# Give PREDICT_LOG_DSN to log the predictions to Postgres, and a volume for /var/lib/predict, where
# they wait if Postgres is away.
FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /srv/predict
COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -r requirements.txt

RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin predict \
    && install -d -o predict -g predict -m 700 /var/lib/predict
COPY predictor ./predictor
COPY predict.py gunicorn.conf.py model.onnx model.json ./
RUN python predict.py

ENV MLOPS_HOST=0.0.0.0 MLOPS_PREDICT_PORT=9696 MLOPS_STATE_DIR=/var/lib/predict
USER predict
EXPOSE 9696
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['MLOPS_PREDICT_PORT']}/health\", timeout=2)"]
CMD ["gunicorn", "-c", "gunicorn.conf.py"]
