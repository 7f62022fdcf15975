"""The tables. Every key starts with ``run_id``, the column by which a cluster shards them.

Tables with large blobs are not clustered by their key: plain rows waste 5 % of their pages instead
of 15. The dialect fills in ``{serial}``, ``{text}``, ``{blob}``, ``{real}`` and ``{clustered}``;
text sorts byte by byte in both engines. Numbers of runs are never reused, so a cache entry under
a run's number never becomes wrong.
"""

from __future__ import annotations

import re

VERSION = 8

TABLES = """
create table run_name (run_id {serial}, run {text} not null unique);

create table run (
  run_id integer primary key, run {text} not null, name {text} not null, project {text} not null,
  state {text} not null, created_at {real} not null, updated_at {real} not null,
  last_step bigint, layers integer not null default 0, breaches bigint not null default 0,
  rescales bigint not null default 0, guard_vetoes bigint not null default 0,
  dropped_values bigint not null default 0, worst_ratio {real}, worst_layer {text},
  nonfinite_layers integer not null default 0, overhead {real},
  attempt bigint not null default 0, version bigint not null default 1,
  next_event bigint not null default 1, next_tail bigint not null default 1,
  interval_shift integer, epoch bigint not null default 0);
create index run_by_project on run (project, run_id);
create index run_by_state on run (state, updated_at);

create table run_config (run_id integer primary key, config {text} not null, tags {text} not null);
create table deleted_run (run_id integer primary key);

create table layer (
  run_id integer not null, layer integer not null, name {text} not null, kind {text} not null,
  shape {text} not null, primary key (run_id, layer)){clustered};
create unique index layer_by_name on layer (run_id, name);

create table layer_table (
  run_id integer not null, table_id integer not null, hash {text} not null, layers {blob} not null,
  body {blob} not null, primary key (run_id, table_id));
create unique index layer_table_by_hash on layer_table (run_id, hash);

create table layout (
  run_id integer not null, layout integer not null, table_id integer not null,
  metrics {text} not null, scalars {text} not null, primary key (run_id, layout)){clustered};
create unique index layout_by_columns on layout (run_id, table_id, metrics, scalars);

create table metric (
  run_id integer not null, metric integer not null, kind {text} not null, name {text} not null,
  primary key (run_id, metric)){clustered};
create unique index metric_by_name on metric (run_id, kind, name);

create table writer (
  run_id integer not null, writer {text} not null, last_seq bigint not null,
  last_step bigint not null, attempt bigint not null, crcs {blob} not null,
  primary key (run_id, writer)){clustered};

create table attempt (
  run_id integer not null, attempt bigint not null, first_step bigint not null,
  started_at {real} not null, primary key (run_id, attempt)){clustered};

create table tail (
  run_id integer not null, id bigint not null, attempt bigint not null, layout integer not null,
  step0 bigint not null, step1 bigint not null, n integer not null, steps {blob},
  received_at {real} not null, size integer not null, v {blob} not null,
  primary key (run_id, id));
create index tail_by_step on tail (run_id, attempt, step0, step1, layout, n, id, size);

create table tile (
  run_id integer not null, attempt bigint not null, metric integer not null,
  level integer not null, block integer not null, step0 bigint not null,
  step1 bigint not null, n integer not null, enc integer not null, steps {blob}, v {blob} not null,
  primary key (run_id, attempt, metric, level, block, step0));

create table latest (
  run_id integer not null, table_id integer not null, metrics {text} not null,
  steps {blob} not null, v {blob} not null, primary key (run_id, table_id));

create table rule_state (run_id integer primary key, v {blob} not null);

create table event (
  run_id integer not null, id bigint not null, at {real} not null, step bigint not null,
  rule {text} not null, severity {text} not null, layer {text}, layers integer not null,
  value {real}, limit_value {real}, message {text} not null, primary key (run_id, id)){clustered};
create index event_by_time on event (at, run_id, id);

create table event_count (
  run_id integer not null, rule {text} not null, severity {text} not null, n bigint not null,
  primary key (run_id, rule, severity)){clustered};

create table run_policy (
  run_id integer not null, version integer not null, body {text} not null, author {text} not null,
  at {real} not null, primary key (run_id, version)){clustered};

create table project_policy (
  project {text} not null, version integer not null, body {text} not null, author {text} not null,
  at {real} not null, primary key (project, version)){clustered};
"""

# The changes of each version; a new database applies all of them.
UPGRADES: dict[int, str] = {
    1: TABLES,
    2: """
create table token (
  id {text} primary key, name {text} not null unique, digest {text} not null,
  scopes {text} not null, project {text}, author {text} not null,
  created_at {real} not null, expires_at {real}, revoked_at {real});

create table run_author (run_id integer primary key, author {text} not null);
create index run_author_by_name on run_author (author, run_id);

create table command (
  run_id integer not null, id bigint not null, action {text} not null, reason {text} not null,
  author {text} not null, at {real} not null, seen_at {real}, primary key (run_id, id)){clustered};
create index command_waiting on command (run_id, id) where seen_at is null;

create table audit (
  id {serial}, at {real} not null, author {text} not null, action {text} not null,
  subject {text} not null, detail {text} not null);
""",
    3: """
create table alerting (
  version integer primary key, body {text} not null, author {text} not null, at {real} not null);

create table alert_lock (id integer primary key, n bigint not null);
insert into alert_lock (id, n) values (1, 0);

create table alert_outbox (
  run_id integer not null, id bigint not null, primary key (run_id, id)){clustered};

create table incident (
  id {serial}, run_id integer not null, state {text} not null, severity {text} not null,
  body {text} not null, opened_at {real} not null, updated_at {real} not null,
  revision bigint not null, omitted bigint not null, resolved_at {real}, acknowledged_at {real},
  acknowledged_by {text} not null default '');
create index incident_by_run on incident (run_id, id);
create index incident_open on incident (run_id) where state = 'open';

create table delivery (
  run_id integer not null, incident bigint not null, receiver {text} not null, next_at {real},
  told {text} not null default 'nothing', told_at {real},
  told_severity {text} not null default 'info',
  failures bigint not null default 0, failing_since {real}, error {text} not null default '',
  silenced integer not null default 0, claimed_until {real},
  primary key (incident, receiver)){clustered};
create index delivery_by_run on delivery (run_id);
create index delivery_due on delivery (receiver, next_at) where next_at is not null;

create table silence (
  id {serial}, project {text} not null, run {text} not null, rule {text} not null,
  layer {text} not null, until {real} not null, comment {text} not null,
  author {text} not null, at {real} not null);
""",
    4: """
create table run_rules (
  run_id integer not null, version integer not null, body {text} not null, author {text} not null,
  at {real} not null, primary key (run_id, version)){clustered};

create table project_rules (
  project {text} not null, version integer not null, body {text} not null, author {text} not null,
  at {real} not null, primary key (project, version)){clustered};

create table annotation (
  run_id integer not null, id integer not null, step bigint not null, quiet_steps bigint not null,
  text {text} not null, author {text} not null, at {real} not null,
  primary key (run_id, id)){clustered};

alter table event add column rules_version integer;
""",
    5: """
create table thinned (run_id integer primary key, below bigint not null, whole integer not null);
""",
    6: """
alter table tile add column crc bigint;
alter table tail add column crcs {blob};

create table damage (
  run_id integer not null, place {text} not null, at {real} not null, detail {text} not null,
  primary key (run_id, place)){clustered};

alter table run add column loss {real};
alter table run add column nonfinite_loss integer not null default 0;
alter table run add column archived integer not null default 0;
alter table run add column acknowledged_at {real};
alter table run add column acknowledged_by {text} not null default '';
alter table run_config add column note {text} not null default '';

create table run_term (
  run_id integer not null, name {text} not null, value {text} not null, number {real},
  primary key (run_id, name, value)){clustered};
create index run_term_by_value on run_term (name, value, run_id);
create index run_term_by_number on run_term (name, number, run_id);
""",
    7: """
create table checkpoint (
  run_id integer primary key, upto bigint not null, settings {text} not null,
  annotations integer not null, v {blob} not null);
insert into checkpoint (run_id, upto, settings, annotations, v)
  select rule_state.run_id, run.next_tail - 1, '', 0, rule_state.v
  from rule_state join run on run.run_id = rule_state.run_id;
drop table rule_state;

alter table run add column pulse {blob};
alter table run rename column epoch to fold_epoch;
""",
    8: """
alter table run add column tail_first bigint;
alter table run add column tail_steps bigint not null default 0;
alter table run add column tail_bytes bigint not null default 0;
create index run_with_tail on run (run_id) where tail_first is not null;
update run set
  tail_first = (select min(step0) from tail where tail.run_id = run.run_id),
  tail_steps = (select coalesce(sum(n), 0) from tail where tail.run_id = run.run_id),
  tail_bytes = (select coalesce(sum(size), 0) from tail where tail.run_id = run.run_id);

drop index incident_open;
create index incident_open on incident (run_id, id, revision, state) where state = 'open';

create table replica (id {text} primary key, beat bigint not null);
""",
}

# Tables with rows of a run, and the rest of their key, for deletion in slices.
PIECES: tuple[tuple[str, str], ...] = (
    ("tail", "id"),
    ("tile", "attempt, metric, level, block, step0"),
    ("event", "id"),
    ("alert_outbox", "id"),
    ("delivery", "incident, receiver"),
    ("incident", "id"),
    ("command", "id"),
    ("event_count", "rule, severity"),
    ("latest", "table_id"),
    ("layout", "layout"),
    ("layer_table", "table_id"),
    ("layer", "layer"),
    ("metric", "metric"),
    ("writer", "writer"),
    ("attempt", "attempt"),
    ("run_policy", "version"),
    ("run_rules", "version"),
    ("annotation", "id"),
    ("thinned", "run_id"),
    ("damage", "place"),
    ("checkpoint", "run_id"),
    ("run_author", "run_id"),
    ("run_term", "name, value"),
    ("run_config", "run_id"),
)


def table_names() -> frozenset[str]:
    """Return the names of all tables."""
    text = "".join(UPGRADES.values())
    gone = re.findall(r"drop table (\w+)", text)
    return frozenset(re.findall(r"create table (\w+)", text)) - {*gone}


def statements(since: int = 0, **words: str) -> list[str]:
    """Return the statements from version ``since`` (0: empty) to this one, in a dialect."""
    steps = "".join(UPGRADES[version] for version in range(since + 1, VERSION + 1))
    return [part.strip() for part in steps.format(**words).split(";") if part.strip()]
