-- Tables of the database `mlops`. Idempotent: safe to run at every start, on an empty database or
-- on one that holds data. A later change is one more statement at the end (ALTER TABLE ... IF NOT
-- EXISTS), never an edit of a CREATE TABLE that has shipped.

CREATE SCHEMA IF NOT EXISTS data;     -- rows of the ingested files, one table per card
CREATE SCHEMA IF NOT EXISTS serving;  -- what the API answered
CREATE SCHEMA IF NOT EXISTS grafana;  -- what the panels and the alert rules read
CREATE SCHEMA IF NOT EXISTS ops;      -- the life of the loop: files, trainings, versions, alerts

-- Every file that was ever accepted. The checksum is of the CSV itself, not of an archive round it,
-- so the same data in another wrapping is recognised.
CREATE TABLE IF NOT EXISTS ops.ingested_files (
    sha256      text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    card        text NOT NULL,
    source      text NOT NULL,
    origin      text NOT NULL CHECK (origin IN ('file', 'download', 'generated')),
    rows        integer NOT NULL,
    bytes       bigint NOT NULL,
    data_digest text, -- of the rows by the card's rules: once these change, it is new data
    ingested_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (card, sha256)
);

-- One row per run of the train pipeline; the leaderboard is stored when all candidates are in.
CREATE TABLE IF NOT EXISTS ops.trainings (
    id           text PRIMARY KEY,
    card         text NOT NULL,
    cause        text NOT NULL,
    window_start date NOT NULL,
    window_end   date NOT NULL,
    data_digest  text NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    leaderboard  jsonb
);

-- One row per stay in production. The champion is the row without retired_at: at most one a card.
CREATE TABLE IF NOT EXISTS ops.deployments (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card          text NOT NULL,
    model_version text NOT NULL,
    training_id   text,
    candidate     text,
    cause         text NOT NULL,
    gate          jsonb,
    deployed_at   timestamptz NOT NULL DEFAULT now(),
    retired_at    timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS deployments_one_production
    ON ops.deployments (card) WHERE retired_at IS NULL;

-- What the test pipeline measured on months that no training had seen.
CREATE TABLE IF NOT EXISTS ops.test_results (
    model_version  text NOT NULL,
    period         date NOT NULL,
    rows           integer NOT NULL,
    metrics        jsonb NOT NULL,
    max_difference double precision NOT NULL,
    tested_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, period)
);

-- Every answered row. `purpose` keeps the test pipeline's and the simulation's traffic apart from
-- people's; `row` is the place in the request's list, from 0.
CREATE TABLE IF NOT EXISTS serving.predictions (
    request_id    text NOT NULL,
    row           integer NOT NULL,
    made_at       timestamptz NOT NULL,
    period        date NOT NULL,
    purpose       text NOT NULL DEFAULT 'live' CHECK (purpose IN ('live', 'simulation', 'test')),
    model_version text NOT NULL,
    features      jsonb NOT NULL,
    probability   double precision NOT NULL,
    warnings      integer NOT NULL DEFAULT 0,
    label         smallint CHECK (label IN (0, 1)),
    labelled_at   timestamptz,
    PRIMARY KEY (request_id, row)
);
CREATE INDEX IF NOT EXISTS predictions_by_version_and_period
    ON serving.predictions (model_version, period);
CREATE INDEX IF NOT EXISTS predictions_by_time ON serving.predictions (made_at);

CREATE TABLE IF NOT EXISTS grafana.evidently_metrics (
    model_version         text NOT NULL,
    period                date NOT NULL,
    row_count             integer NOT NULL,
    prediction_drift      double precision,
    -- What chance alone reaches in a month of that many rows; below it a drift is no finding.
    prediction_drift_noise double precision,
    num_drifted_columns   integer,
    share_drifted_columns double precision,
    share_missing_values  double precision,
    accuracy              double precision,
    roc_auc               double precision,
    brier                 double precision,
    positive_rate         double precision,
    update_time           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, period)
);

-- Alerts as they came, one row per alert (not per repeat). Waiting ones have no handled_at.
CREATE TABLE IF NOT EXISTS ops.alerts (
    fingerprint text NOT NULL,
    starts_at   timestamptz NOT NULL,
    status      text NOT NULL CHECK (status IN ('firing', 'resolved')),
    rule        text NOT NULL,
    body        jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    repeats     integer NOT NULL DEFAULT 0,
    tries       integer NOT NULL DEFAULT 0, -- retrains started for it; a failed one is tried again
    handled_at  timestamptz,
    decision    text,
    retrain     text,
    PRIMARY KEY (fingerprint, starts_at)
);
CREATE INDEX IF NOT EXISTS alerts_waiting ON ops.alerts (received_at) WHERE handled_at IS NULL;

-- One row per retrain, written when it is asked for and completed whatever happens.
CREATE TABLE IF NOT EXISTS ops.retrains (
    id               text PRIMARY KEY,
    card             text NOT NULL,
    cause            text NOT NULL,
    alert            text,
    training_id      text,
    started_at       timestamptz NOT NULL DEFAULT now(),
    finished_at      timestamptz,
    outcome          text CHECK (outcome IN ('promoted', 'kept_champion', 'failed')),
    reason           text,
    champion         text,
    challenger       text,
    champion_score   double precision,
    challenger_score double precision,
    gate             jsonb,
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
);
-- One retrain at a time, held by the database and not by anybody's good manners.
CREATE UNIQUE INDEX IF NOT EXISTS retrains_one_at_a_time
    ON ops.retrains (card) WHERE finished_at IS NULL;

-- State of the embedded alert evaluator, so that a restart neither forgets an alert nor repeats one.
CREATE TABLE IF NOT EXISTS ops.alert_states (
    rule_uid     text NOT NULL,
    fingerprint  text NOT NULL,
    labels       jsonb NOT NULL,
    state        text NOT NULL CHECK (state IN ('normal', 'pending', 'firing', 'resolved')),
    value        double precision,
    active_at    timestamptz,
    fired_at     timestamptz,
    resolved_at  timestamptz,
    last_sent_at timestamptz,
    evaluated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rule_uid, fingerprint)
);

-- When the evaluator last looked at each rule: a rule without an alert has no state that could tell.
CREATE TABLE IF NOT EXISTS ops.evaluations (
    rule_uid     text PRIMARY KEY,
    evaluated_at timestamptz NOT NULL
);

-- Every file of data/inbox/ that was looked into: scored to data/outbox/, or rejected with its reason.
-- `runs` counts the times that it was scored to the end: a file put in again whose result was taken
-- away is scored again, and logged as the new request that it is.
CREATE TABLE IF NOT EXISTS ops.scored_files (
    sha256      text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'), -- of the content
    name        text NOT NULL,
    status      text NOT NULL CHECK (status IN ('scoring', 'success', 'rejected')),
    request_id  text NOT NULL,
    bytes       bigint NOT NULL,
    runs        integer NOT NULL DEFAULT 0,
    version     text,
    rows        bigint,
    scored      bigint,
    rejected    bigint,
    predictions text, -- path below the exchange folder, such as outbox/customers.csv
    reason      text,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    PRIMARY KEY (sha256, name)
);
CREATE INDEX IF NOT EXISTS scored_files_by_time ON ops.scored_files (started_at);

-- The panels' role reads everything and writes nothing; the API's role adds predictions only.
GRANT USAGE ON SCHEMA data, serving, grafana, ops TO grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA data, serving, grafana, ops TO grafana;
ALTER DEFAULT PRIVILEGES IN SCHEMA data, serving, grafana, ops GRANT SELECT ON TABLES TO grafana;
GRANT USAGE ON SCHEMA serving TO predict;
GRANT INSERT ON serving.predictions TO predict;
-- It copies the log into a table of its own session first, since COPY knows no ON CONFLICT.
GRANT TEMPORARY ON DATABASE mlops TO predict;

-- A person ended it: its alerts are not tried again, as they are after a failure.
ALTER TABLE ops.retrains ADD COLUMN IF NOT EXISTS cancelled boolean NOT NULL DEFAULT false;

-- What each column of a month came to; `distance` and `noise` have no unit, shares are 0..1.
CREATE TABLE IF NOT EXISTS grafana.column_drift (
    model_version           text NOT NULL,
    period                  date NOT NULL,
    column_name             text NOT NULL,
    kind                    text NOT NULL CHECK (kind IN ('number', 'category')),
    distance                double precision,
    noise                   double precision, -- what chance reaches in a month of that many rows
    drifted                 boolean,
    missing_share           double precision NOT NULL,
    reference_missing_share double precision NOT NULL,
    missing_more            boolean NOT NULL, -- by margin, and by more than chance explains
    update_time             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, period, column_name)
);

-- How far performance is known: intervals are the bootstrap's, the reference is the validation's.
ALTER TABLE grafana.evidently_metrics
    ADD COLUMN IF NOT EXISTS labelled_count integer,
    ADD COLUMN IF NOT EXISTS labelled_since date, -- first month that is counted in with this one
    ADD COLUMN IF NOT EXISTS roc_auc_low double precision,
    ADD COLUMN IF NOT EXISTS roc_auc_high double precision,
    ADD COLUMN IF NOT EXISTS reference_roc_auc double precision,
    ADD COLUMN IF NOT EXISTS calibration_gap double precision, -- mean score less positive rate
    ADD COLUMN IF NOT EXISTS calibration_gap_low double precision,
    ADD COLUMN IF NOT EXISTS calibration_gap_high double precision;

-- What was found in the rows of a training before anything was fitted.
CREATE TABLE IF NOT EXISTS ops.data_checks (
    training_id text PRIMARY KEY,
    card        text NOT NULL,
    passed      boolean NOT NULL,
    findings    jsonb NOT NULL,
    checked_at  timestamptz NOT NULL DEFAULT now()
);

-- Why the loop promotes nothing for now; a person's rollback writes it, a person ends it.
CREATE TABLE IF NOT EXISTS ops.holds (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card        text NOT NULL,
    reason      text NOT NULL,
    held_at     timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz,
    released_by text
);
CREATE UNIQUE INDEX IF NOT EXISTS holds_one_at_a_time
    ON ops.holds (card) WHERE released_at IS NULL;

ALTER TABLE ops.deployments
    ADD COLUMN IF NOT EXISTS began text, -- first, gate, by hand, rollback, withdrawn, healed
    ADD COLUMN IF NOT EXISTS retired_by text; -- the version that took its place

-- A version that scores what the champion answers, and answers nobody.
CREATE TABLE IF NOT EXISTS ops.shadows (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card          text NOT NULL,
    model_version text NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    ended_by      text
);
CREATE UNIQUE INDEX IF NOT EXISTS shadows_one_at_a_time
    ON ops.shadows (card) WHERE ended_at IS NULL;
CREATE TABLE IF NOT EXISTS serving.shadow_predictions (
    request_id    text NOT NULL,
    row           integer NOT NULL,
    model_version text NOT NULL, -- the shadow's
    period        date NOT NULL,
    probability   double precision, -- null if it cannot score the row: `refused` says why
    refused       text,
    scored_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (request_id, row, model_version),
    CHECK ((probability IS NULL) = (refused IS NOT NULL)),
    -- What the log forgets, the shadow forgets: whoever deletes predictions need not know of it.
    FOREIGN KEY (request_id, row) REFERENCES serving.predictions ON DELETE CASCADE
);
ALTER TABLE ops.shadows
    ADD COLUMN IF NOT EXISTS started_by text NOT NULL DEFAULT 'a person', -- or: the loop
    ADD COLUMN IF NOT EXISTS reason text,
    ADD COLUMN IF NOT EXISTS candidate text,
    ADD COLUMN IF NOT EXISTS threshold double precision, -- at which it would decide
    ADD COLUMN IF NOT EXISTS since date; -- first month that it scores though it was answered before

-- The shadow beside the version that answered, on the same rows of a month. What has no prefix is
-- the shadow's; `_low` and `_high` are of its difference from the champion, by paired bootstrap.
CREATE TABLE IF NOT EXISTS grafana.shadow_comparison (
    model_version         text NOT NULL, -- the shadow's
    champion              text NOT NULL, -- who answered
    period                date NOT NULL,
    row_count             integer NOT NULL, -- scored by both
    refused_count         integer NOT NULL,
    threshold             double precision,
    champion_threshold    double precision,
    mean_score            double precision,
    champion_mean_score   double precision,
    correlation           double precision, -- Pearson's, of the scores
    score_distance        double precision, -- Wasserstein, in standard deviations of the champion's
    changed_share         double precision, -- decided otherwise, each at its own threshold
    labelled_count        integer NOT NULL,
    positive_rate         double precision,
    roc_auc               double precision,
    champion_roc_auc      double precision,
    roc_auc_low           double precision,
    roc_auc_high          double precision,
    brier                 double precision,
    champion_brier        double precision,
    brier_low             double precision,
    brier_high            double precision,
    profit                double precision, -- per 1,000 rows, at the card's costs
    champion_profit       double precision,
    profit_low            double precision,
    profit_high           double precision,
    labels_until          timestamptz, -- the latest label that is counted in
    update_time           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, champion, period)
);

ALTER TABLE ops.retrains ADD COLUMN IF NOT EXISTS notified_at timestamptz;

-- The ROC AUC of the reference less that of the counted labels, and the lower end of its interval.
ALTER TABLE grafana.evidently_metrics
    ADD COLUMN IF NOT EXISTS roc_auc_loss double precision,
    ADD COLUMN IF NOT EXISTS roc_auc_loss_low double precision;

-- Each column of each month, and since when it has been as it is: the first month of the unbroken
-- run, among those that the version answered, in which it drifted, or missed more than it may.
CREATE OR REPLACE VIEW grafana.column_history AS
WITH months AS (
    SELECT *,
           count(*) FILTER (WHERE drifted IS NOT TRUE) OVER earlier AS drift_run,
           count(*) FILTER (WHERE NOT missing_more) OVER earlier AS missing_run
    FROM grafana.column_drift
    WINDOW earlier AS (PARTITION BY model_version, column_name ORDER BY period)
)
SELECT model_version, period, column_name, kind, distance, noise, drifted, missing_share,
       reference_missing_share, missing_more, update_time,
       CASE WHEN drifted THEN min(period) FILTER (WHERE drifted)
           OVER (PARTITION BY model_version, column_name, drift_run) END AS drifted_since,
       CASE WHEN missing_more THEN min(period) FILTER (WHERE missing_more)
           OVER (PARTITION BY model_version, column_name, missing_run) END AS missing_since
FROM months;

-- A rollback writes its hold before anything else, so that one that was killed is known for what it
-- was: from which version to which, and whether it got there.
ALTER TABLE ops.holds
    ADD COLUMN IF NOT EXISTS rolled_from text,
    ADD COLUMN IF NOT EXISTS rolled_to text,
    ADD COLUMN IF NOT EXISTS done_at timestamptz,
    ADD COLUMN IF NOT EXISTS request text; -- whoever asked for it, so that asking again is known

-- Every decision of the gate, also of those that kept the champion, and of what a person decided.
CREATE TABLE IF NOT EXISTS ops.gate_decisions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card        text NOT NULL,
    challenger  text NOT NULL,
    champion    text,
    training_id text,
    cause       text NOT NULL,
    promote     boolean NOT NULL,
    reason      text NOT NULL,
    numbers     jsonb NOT NULL,
    decided_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS gate_decisions_by_challenger ON ops.gate_decisions (card, challenger);

-- Stays that were written before these columns were there.
UPDATE ops.deployments d SET
    began = coalesce(began, CASE
        WHEN cause LIKE '%interrupted before this row was written' THEN 'healed'
        WHEN cause LIKE 'version % was refused%' THEN 'withdrawn'
        WHEN (gate -> 'numbers' ->> 'champion') IS NULL THEN 'first'
        ELSE 'gate' END),
    retired_by = coalesce(retired_by, (
        SELECT later.model_version FROM ops.deployments later
        WHERE later.card = d.card AND later.id > d.id
          AND later.deployed_at - d.retired_at < interval '1 second'
        ORDER BY later.id LIMIT 1))
WHERE began IS NULL;

-- The life of every version: a row a stay in production, and one for each that never was there.
CREATE OR REPLACE VIEW ops.version_history AS
WITH trained AS (
    SELECT t.card, entry ->> 'version' AS model_version, entry ->> 'candidate' AS candidate,
           (entry ->> 'rank')::integer AS rank, t.id AS training_id, t.cause AS training_cause,
           t.window_start, t.window_end, t.finished_at AS trained_at,
           (entry #>> '{metrics,fitting_rows}')::double precision AS fitted_rows,
           (entry #>> '{metrics,fitting_rows}')::double precision
               * (entry #>> '{metrics,fitting_positive_rate}')::double precision AS fitted_positives,
           (entry #>> '{metrics,validation_rows}')::double precision AS validation_rows,
           (entry #>> '{metrics,validation_roc_auc}')::double precision AS validation_roc_auc,
           (entry #>> '{metrics,validation_brier}')::double precision AS validation_brier
    FROM ops.trainings t CROSS JOIN LATERAL jsonb_array_elements(t.leaderboard) AS entry
    WHERE entry ->> 'version' IS NOT NULL
), lives AS (
    SELECT coalesce(d.card, t.card) AS card,
           coalesce(d.model_version, t.model_version) AS model_version,
           coalesce(t.candidate, d.candidate) AS candidate,
           coalesce(t.training_id, d.training_id) AS training_id,
           t.rank, t.training_cause, t.window_start, t.window_end, t.trained_at, t.fitted_rows,
           round(t.fitted_positives) AS fitted_positives, t.validation_rows, t.validation_roc_auc,
           t.validation_brier, d.id AS stay, d.began, d.cause AS began_because,
           d.deployed_at AS production_from, d.retired_at AS production_until, d.retired_by,
           d.gate AS own_gate
    FROM trained t
    FULL JOIN ops.deployments d ON d.card = t.card AND d.model_version = t.model_version
), judged AS (
    SELECT l.*, r.id AS retrain, r.alert, r.cause AS retrain_cause,
           coalesce(l.own_gate, g.gate, CASE WHEN r.challenger = l.model_version THEN
               jsonb_build_object('promote', r.outcome = 'promoted', 'reason', r.reason,
                                  'numbers', r.gate) END) AS gate
    FROM lives l
    LEFT JOIN LATERAL (
        SELECT jsonb_build_object('promote', promote, 'reason', reason, 'numbers', numbers) AS gate
        FROM ops.gate_decisions d WHERE d.card = l.card AND d.challenger = l.model_version
        ORDER BY d.id DESC LIMIT 1) g ON true
    LEFT JOIN LATERAL (
        SELECT * FROM ops.retrains r WHERE r.training_id = l.training_id
        ORDER BY r.started_at DESC LIMIT 1) r ON true
)
SELECT card, model_version, candidate, rank, training_id, training_cause, retrain, alert,
       retrain_cause, window_start, window_end, fitted_rows, fitted_positives, validation_rows,
       validation_roc_auc, validation_brier, trained_at, stay, began, began_because,
       production_from, production_until, retired_by,
       (gate ->> 'promote')::boolean AS gate_promote, gate #>> '{numbers,rule}' AS gate_rule,
       gate ->> 'reason' AS gate_reason,
       (gate #>> '{numbers,rows}')::integer AS gate_rows,
       (gate #>> '{numbers,challenger_roc_auc}')::double precision AS gate_roc_auc,
       gate #>> '{numbers,champion}' AS gate_champion,
       (gate #>> '{numbers,champion_roc_auc}')::double precision AS gate_champion_roc_auc,
       (gate #>> '{numbers,roc_auc,difference}')::double precision AS roc_auc_difference,
       (gate #>> '{numbers,roc_auc,low}')::double precision AS roc_auc_low,
       (gate #>> '{numbers,roc_auc,high}')::double precision AS roc_auc_high,
       (gate #>> '{numbers,brier,difference}')::double precision AS brier_difference,
       (gate #>> '{numbers,brier,low}')::double precision AS brier_low,
       (gate #>> '{numbers,brier,high}')::double precision AS brier_high,
       gate
FROM judged;

-- Tries of telling the webhook, each counted before it is made; after the third it is given up.
ALTER TABLE ops.retrains ADD COLUMN IF NOT EXISTS notify_tries integer NOT NULL DEFAULT 0;

-- A month whose labels a version was fitted on: neither is measured on it.
ALTER TABLE grafana.shadow_comparison
    ADD COLUMN IF NOT EXISTS known_to_shadow boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS known_to_champion boolean NOT NULL DEFAULT false;

-- Searches of candidates' parameters; Optuna makes its own tables there (mlops/training/search.py).
CREATE SCHEMA IF NOT EXISTS optuna;
